"""Attesters by the name that people give."""

from __future__ import annotations

from pathlib import Path

from quorate.errors import ConfigError
from quorate_server.aggregator.attesters import Attester
from quorate_server.aggregator.attesters.software import SoftwareAttester

KINDS = ("software",)


def attester_of(kind: str, key_file: str = "") -> Attester:
    """Raises ConfigError: there is none of that name, or it cannot work here."""
    match kind:
        case "software":
            return SoftwareAttester(Path(key_file))
        case _:
            raise ConfigError("There is no such attester", expected=" or ".join(KINDS), got=kind[:40])
