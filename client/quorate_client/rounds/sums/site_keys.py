"""What secure sums need of the site: its keys, the pinned keys of the others, its votes, the study keys it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.identity import RunId, SiteName
from quorate.process.private_files import write_private
from quorate.secagg.study_key import KEY_BYTES, StudyKey
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate_client.rounds.sums.votes import VoteLog

if TYPE_CHECKING:
    from quorate.secagg.participant import Member


@dataclass(frozen=True, slots=True)
class SiteSecrets:
    """One per daemon.

    Args:
        keys: Gives the signing and the sealing key.
        sealing_keys: The X25519 keys of a study's sites, by the study's digest, as pinned when it was approved.
        study_keys: The folder of the study keys; tasks do not see it.
    """

    keys: Callable[[], tuple[Ed25519PrivateKey, X25519PrivateKey]]
    sealing_keys: Callable[[bytes], Mapping[SiteName, bytes]]
    votes: VoteLog
    study_keys: Path

    def study_key(self, run: RunId) -> StudyKey | None:
        """The key of a run, if this site has it."""
        path = self._path(run)
        content = path.read_bytes() if path.exists() else b""
        return StudyKey(content) if len(content) == KEY_BYTES else None

    def keep_study_key(self, run: RunId, key: StudyKey) -> None:
        self.study_keys.mkdir(mode=0o700, exist_ok=True)
        write_private(self._path(run), key.secret)

    def forget(self, run: RunId) -> None:
        """The run is over here; if it goes on, the server passes the parts of its key on again."""
        self._path(run).unlink(missing_ok=True)

    def member(self, study: Study, site: SiteName, key: StudyKey) -> Member:
        from quorate.secagg.participant import Member  # imports numpy

        return Member(site, roster_of(study), rules_of(study), self.keys()[0], key)

    def _path(self, run: RunId) -> Path:
        return self.study_keys / f"{run}.key"


def roster_of(study: Study) -> dict[SiteName, bytes]:
    return {SiteName(site.name): bytes.fromhex(site.signing_key) for site in study.sites}


def rules_of(study: Study) -> Rules:
    return Rules(len(study.sites), study.protection.colluders)
