"""Which loop runs a study."""

from __future__ import annotations

from quorate.study.study import Study
from quorate_server.rounds.plain_loop import StudyLoop
from quorate_server.rounds.secure.loop import SecureLoop


def loop_of(study: Study) -> type[StudyLoop] | type[SecureLoop]:
    return StudyLoop if study.protection.mode == "none" else SecureLoop
