"""The site's policy: what its administrator lets happen here, whatever the consortium publishes.

``policy.toml`` is a file of its own so that it can belong to another user than the daemon's. It is read again before
every instruction: a change takes effect at once, and a broken file lets nothing through. Without a file the defaults
hold, which allow no unprotected study and release no model outside the sites.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from quorate.errors import ConfigError, PolicyError, ProtectionRefusedError, RosterTooSmallError
from quorate.study import Study
from quorate_client.config import read_toml

SHIPPED_TASKS = ("tabular-classifier", "image-classifier")

DEFAULT_POLICY_TOML = """\
# What this site lets happen, whatever the consortium publishes. These are the defaults.

# How updates may be protected. "none" lets the server read them; it must be added here for such a study to run.
protection = ["secagg"]

# Least number of sites in a study, and least number whose updates make a round count.
minimum_sites = 3

# Least number of sites that may work together with the server and still learn no single site's update. 0 is for studies
# of two sites, where each learns the other's in any case.
colluders = 1

# Who may get the final model: "sites" (it stays with them), "operator" (the operator may fetch it too).
release = ["sites"]

# Tasks that may run here. A stock Flower app is named "flower:MODULE:ATTRIBUTE".
tasks = ["tabular-classifier", "image-classifier"]

# Refuse to run a task where the system does not let it be cut off from the network and the keys.
require_isolation = false
"""


class Policy(BaseModel):
    """Floors and ceilings of this site; ``docs/reference/policy.md`` explains each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protection: frozenset[Literal["none", "secagg"]] = Field(
        default=frozenset({"secagg"}), description="modes of protection; none lets the server read every update"
    )
    minimum_sites: int = Field(default=3, ge=1, description="least sites of a study, and least quorum of its rounds")
    colluders: int = Field(
        default=1, ge=0, description="least sites that a secure study must stand if they work together with the server"
    )
    release: frozenset[Literal["sites", "operator"]] = Field(
        default=frozenset({"sites"}), description="who may get a study's final model"
    )
    tasks: frozenset[str] = Field(default=frozenset(SHIPPED_TASKS), description="tasks that may run here, by name")
    require_isolation: bool = Field(
        default=False, description="run no task where the machine cannot cut its process off from the network"
    )

    def check(self, study: Study) -> None:
        """Refuse a study that this policy does not allow.

        Raises:
            ProtectionRefusedError, RosterTooSmallError, PolicyError: naming the key of the policy that refuses.
        """
        mode = study.protection.mode
        if mode not in self.protection:
            raise ProtectionRefusedError(
                f"The study {study.name} protects its updates by {mode!r}, which this site's policy does not allow",
                expected=f"protection = {_choices(self.protection)}",
                got=mode,
                action=_ACTION,
            )
        if len(study.sites) < self.minimum_sites:
            raise RosterTooSmallError(
                f"The study {study.name} has too few sites for this site's policy",
                expected=f"minimum_sites = {self.minimum_sites}",
                got=f"{len(study.sites)} sites",
                action=_ACTION,
            )
        if study.rounds.quorum < self.minimum_sites:
            raise RosterTooSmallError(
                f"The study {study.name} counts rounds of fewer sites than this site's policy allows",
                expected=f"minimum_sites = {self.minimum_sites}",
                got=f"rounds.quorum = {study.rounds.quorum}",
                action=_ACTION,
            )
        if mode == "secagg" and study.protection.colluders < self.colluders:
            raise RosterTooSmallError(
                f"The study {study.name} does not stand as many colluding sites as this site's policy demands",
                expected=f"colluders = {self.colluders}",
                got=f"protection.colluders = {study.protection.colluders}",
                action=_ACTION,
            )
        if study.released_to not in self.release:
            raise PolicyError(
                f"The study {study.name} releases its model to the {study.released_to}, "
                "which this site's policy does not allow",
                expected=f"release = {_choices(self.release)}",
                got=study.released_to,
                action=_ACTION,
            )
        if study.task.name not in self.tasks:
            raise PolicyError(
                f"The study {study.name} runs a task that this site's policy does not allow",
                expected=f"tasks = {_choices(self.tasks)}",
                got=study.task.name,
                action=_ACTION,
            )


_ACTION = "Reject the study, or have whoever is responsible for policy.toml change it"


def read_policy(path: Path) -> Policy:
    """Read ``policy.toml``; a missing file means the defaults.

    Raises:
        ConfigError: naming the file, each wrong key and what was expected.
    """
    return read_toml(path, Policy) if path.exists() else Policy()


def check_policy_now(path: Path, study: Study) -> None:
    """Check a study against the policy as it is on disk at this moment; a broken file refuses everything.

    Raises:
        PolicyError: the study is not allowed, or the file cannot be read.
    """
    try:
        policy = read_policy(path)
    except ConfigError as error:
        raise PolicyError("The site's policy cannot be read, so nothing is allowed", got=str(error)) from error
    policy.check(study)


def _choices(values: frozenset[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in sorted(values)) + "]"
