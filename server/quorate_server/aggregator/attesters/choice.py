"""Attesters by the name that people give."""

from __future__ import annotations

from pathlib import Path

from quorate.errors import ConfigError
from quorate_server.aggregator.attesters import Attester
from quorate_server.aggregator.attesters.confidential_space import ConfidentialSpaceAttester
from quorate_server.aggregator.attesters.software import SoftwareAttester
from quorate_server.aggregator.attesters.tsm import TsmAttester

KINDS = ("tsm", "confidential-space", "software")


def attester_of(kind: str, detail: str = "") -> Attester:
    """The attester of that name.

    Args:
        detail: tsm: the file of endorsements, if there is one; confidential-space: the audience; software: the file of
            its key.

    Raises:
        ConfigError: there is none of that name, or it cannot work here.
    """
    match kind:
        case "tsm":
            return TsmAttester(Path(detail) if detail else None)
        case "confidential-space":
            return ConfidentialSpaceAttester(detail)
        case "software":
            return SoftwareAttester(Path(detail))
        case _:
            raise ConfigError("There is no such attester", expected=" or ".join(KINDS), got=kind[:40])
