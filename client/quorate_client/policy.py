"""The site's policy: what its administrator lets happen here, whatever the consortium publishes.

``policy.toml`` is a file of its own so that it can belong to root and not to the daemon's user. It is read again before
every instruction: a change takes effect at once. A broken file lets nothing through, nor one that anybody else could
have put there, nor one that is gone: the site remembers that it had one. Where there never was a file the defaults
hold, which allow no unprotected study and release no model outside the sites; an empty file says the same. Every number
is a floor or a ceiling; no message of the server is looked at, only the study that was approved here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from quorate.errors import (
    ConfigError,
    OutsideHoursError,
    PolicyError,
    PrivacyRefusedError,
    ProtectionRefusedError,
    RosterTooSmallError,
    StudyExpiredError,
)
from quorate.exchange import Phase
from quorate.privacy.terms import EvaluationPrivacy, Privacy
from quorate.study import Study
from quorate_client.config import parse_toml
from quorate_client.folder import SiteFolder
from quorate_client.keys import owner_of
from quorate_client.state import site_state
from quorate_client.trusted_file import read_trusted

SHIPPED_TASKS = ("tabular-classifier", "image-classifier")

DEFAULT_POLICY_TOML = """\
# What this site lets happen, whatever the consortium publishes. These are the defaults.

# How updates may be protected. "none" lets the server read them; it must be added here for such a study to run.
protection = ["secagg"]

# May a study without protection count exactly how its model does on held-out records here? The server has the counts of
# this site, and can make up the models that are tried: one question after the other reads values of held-out records.
evaluation_without_protection = false

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

# When sites train here, by this machine's clock; "20:00-06:00" is at night.
hours = "00:00-24:00"

[privacy]
# Mechanisms that a study must have on: "training" (DP-SGD, per record), "update" (noise before sending, per site),
# "average" (noise after averaging, per site), "evaluation" (noise on what is counted on held-out records).
# docs/concepts/differential-privacy.md says what each promises.
require = []

# Least noise multiplier of each mechanism that a study has on, and largest norm to which it may clip.
least_noise = 0.0
# largest_clip = 1.0

# Least number of records of a data set on which a study with [privacy.training] runs.
least_records = 50

# Largest delta of a study. Absent: 1 / records^1.1 of the data set.
# largest_delta = 1e-5

# Most epsilon per record (or per unit, where the data set names units) that a data set spends in one run, in the last
# 365 days, and for ever. Absent: no limit. Of its test part it is per held-out record, also where there are units.
# Once there is a limit, no study without [privacy.training] runs here: nothing bounds what it would spend.
# epsilon_per_run = 4.0
# epsilon_per_year = 8.0
# epsilon_ever = 16.0

# The chance that a limit on epsilon may fail to hold: all of them are held at this delta, whatever delta a study has.
# Set it below 1 / (number of records) before you set a limit; a limit means something else at another delta.
delta = 1e-5

# What limits for a year and for ever say to records that were released without a bound, by a study without
# [privacy.training] or a guest app, or held-out ones by exact counts: "refuse" every further private study of theirs,
# or "set_aside" that and hold the rest to the limit.
unbounded = "refuse"
"""

_BEGINS_WORK = (Phase.PREPARE, Phase.TRAIN, Phase.HELLO, Phase.UPLOAD, Phase.GUEST)
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"


class PrivacyPolicy(BaseModel):
    """What a study must promise about the records of this site, and what its data sets may spend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    require: frozenset[Literal["training", "update", "average", "evaluation"]] = Field(
        default=frozenset(), description="mechanisms that a study must have on"
    )
    least_noise: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="least noise multiplier of each mechanism that is on"
    )
    largest_clip: _Positive | None = Field(default=None, description="largest norm to which a study may clip")
    least_records: int = Field(
        default=50, ge=2, description="least training records (or units) of a data set for DP-SGD"
    )
    largest_delta: _Positive | None = Field(
        default=None, description="largest delta of a study; absent: 1 / records^1.1 of the data set"
    )
    epsilon_per_run: _Positive | None = Field(
        default=None,
        description="most epsilon of a data set in one run: of its training part per record (or unit, where it names "
        "units), of its test part per held-out record; so are the next two",
    )
    epsilon_per_year: _Positive | None = Field(
        default=None, description="most epsilon of a data set in the last 365 days"
    )
    epsilon_ever: _Positive | None = Field(default=None, description="most epsilon of a data set for ever")
    delta: Annotated[float, Field(gt=0, lt=0.1)] = Field(
        default=1e-5, description="at which all limits on epsilon are held, whatever a study's delta"
    )
    unbounded: Literal["refuse", "set_aside"] = Field(
        default="refuse",
        description="what limits for a year and for ever say to records that were released without a bound",
    )

    @property
    def epsilons(self) -> dict[str, float | None]:
        """What bounds the spending of a data set, by key."""
        return {name: getattr(self, name) for name in ("epsilon_ever", "epsilon_per_year", "epsilon_per_run")}

    @property
    def limits(self) -> dict[str, float | str | None]:
        """The same with how it is held, which can loosen it too: as it is written on the ledger."""
        return {**self.epsilons, "delta": self.delta, "unbounded": self.unbounded}

    @property
    def budget(self) -> str | None:
        """The first limit on what a data set may spend, as it stands in the file."""
        return next((f"privacy.{name} = {limit:g}" for name, limit in self.epsilons.items() if limit is not None), None)

    def delta_for(self, records: int) -> float:
        """The largest delta for so many records."""
        return self.largest_delta if self.largest_delta is not None else float(records) ** -1.1


class Policy(BaseModel):
    """Floors and ceilings of this site; ``docs/reference/policy.md`` explains each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protection: frozenset[Literal["none", "secagg"]] = Field(
        default=frozenset({"secagg"}), description="modes of protection; none lets the server read every update"
    )
    evaluation_without_protection: bool = Field(
        default=False,
        description="whether exact counts over held-out records may be told of models that the server could have made "
        "up; matters for protection none only",
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
    hours: str = Field(
        default="00:00-24:00",
        pattern=f"^{_CLOCK}-({_CLOCK}|24:00)$",
        description="HH:MM-HH:MM of this machine's clock in which sites train here",
    )
    privacy: PrivacyPolicy = PrivacyPolicy()

    def check(self, study: Study) -> None:
        """Refuse a study that this policy does not allow.

        Raises:
            PolicyError: of the kind of the first rule that refuses, naming its key.
        """
        for rule in self.rules(study):
            if not rule.is_met:
                raise rule.refusal(
                    f"The study {study.name} {rule.problem}", expected=rule.demand, got=rule.found, action=_ACTION
                )

    def check_hour(self, now: datetime) -> None:
        """Refuse work at this hour (local time).

        Raises:
            OutsideHoursError: it is outside ``hours``.
        """
        start, end = self.hours.split("-")
        clock = now.time()
        begins = time.fromisoformat(start)
        if end == "24:00":
            inside = clock >= begins
        else:
            ends = time.fromisoformat(end)
            inside = begins <= clock < ends if begins < ends else clock >= begins or clock < ends
        if not inside:
            raise OutsideHoursError(
                "This site does not train at this hour", expected=f'hours = "{self.hours}"', got=f"{clock:%H:%M}"
            )

    def check_phase(self, phase: Phase, now: datetime) -> None:
        """Refuse to begin work at this hour (local time). What is begun is finished: others wait for it.

        Raises:
            OutsideHoursError: it is outside ``hours``.
        """
        if phase in _BEGINS_WORK:
            self.check_hour(now)

    def rules(self, study: Study) -> Iterator[Rule]:
        """Each rule of the policy, with what the study has."""
        mode = study.protection.mode
        yield Rule(
            f"protection = {_choices(self.protection)}",
            mode,
            mode in self.protection,
            f"protects its updates by {mode!r}, which this site's policy does not allow",
            ProtectionRefusedError,
        )
        if mode == "none" and study.tells_exact_counts:
            yield Rule(
                f"evaluation_without_protection = {str(self.evaluation_without_protection).lower()}",
                f"exact counts after {study.evaluations} of {study.rounds.count} rounds",
                self.evaluation_without_protection,
                "tells exact counts over held-out records of models that the server can make up, which this site's "
                "policy does not allow",
                ProtectionRefusedError,
            )
        yield Rule(
            f"minimum_sites = {self.minimum_sites}",
            f"{len(study.sites)} sites",
            len(study.sites) >= self.minimum_sites,
            "has too few sites for this site's policy",
            RosterTooSmallError,
        )
        yield Rule(
            f"minimum_sites = {self.minimum_sites}",
            f"rounds.quorum = {study.rounds.quorum}",
            study.rounds.quorum >= self.minimum_sites,
            "counts rounds of fewer sites than this site's policy allows",
            RosterTooSmallError,
        )
        if mode == "secagg":
            yield Rule(
                f"colluders = {self.colluders}",
                f"protection.colluders = {study.protection.colluders}",
                study.protection.colluders >= self.colluders,
                "does not stand as many colluding sites as this site's policy demands",
                RosterTooSmallError,
            )
        yield Rule(
            f"release = {_choices(self.release)}",
            study.released_to,
            study.released_to in self.release,
            f"releases its model to the {study.released_to}, which this site's policy does not allow",
            PolicyError,
        )
        yield Rule(
            f"tasks = {_choices(self.tasks)}",
            study.task.name,
            study.task.name in self.tasks,
            "runs a task that this site's policy does not allow",
            PolicyError,
        )
        yield from _privacy_rules(self.privacy, study.privacy)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the policy, held against a study. ``problem`` completes "The study NAME ..."."""

    demand: str
    found: str
    is_met: bool
    problem: str
    refusal: type[PolicyError]


def _privacy_rules(policy: PrivacyPolicy, privacy: Privacy | None) -> Iterator[Rule]:
    mechanisms = privacy.mechanisms if privacy is not None else {}
    if policy.require:
        yield Rule(
            f"privacy.require = {_choices(policy.require)}",
            ", ".join(sorted(mechanisms)) or "no differential privacy",
            policy.require <= set(mechanisms),
            "does not have on what this site's policy requires",
            PrivacyRefusedError,
        )
    if policy.budget is not None:
        yield Rule(
            policy.budget,
            "DP-SGD" if "training" in mechanisms else "training without privacy",
            "training" in mechanisms,
            "releases what no epsilon bounds, and this site's policy bounds the epsilon of its data sets",
            PrivacyRefusedError,
        )
    for name, mechanism in mechanisms.items():
        # With a target the noise follows from the number of records: the same floor is checked again when it is known.
        if mechanism.noise_multiplier is not None and policy.least_noise > 0:
            yield Rule(
                f"privacy.least_noise = {policy.least_noise:g}",
                f"privacy.{name}.noise_multiplier = {mechanism.noise_multiplier:g}",
                mechanism.noise_multiplier >= policy.least_noise,
                "adds less noise than this site's policy demands",
                PrivacyRefusedError,
            )
        if policy.largest_clip is not None and not isinstance(mechanism, EvaluationPrivacy):
            yield Rule(
                f"privacy.largest_clip = {policy.largest_clip:g}",
                f"privacy.{name}.clip = {mechanism.clip:g}",
                mechanism.clip <= policy.largest_clip,
                "clips to a larger norm than this site's policy allows",
                PrivacyRefusedError,
            )
    if privacy is not None and policy.largest_delta is not None:
        yield Rule(
            f"privacy.largest_delta = {policy.largest_delta:g}",
            f"privacy.delta = {privacy.delta:g}",
            privacy.delta <= policy.largest_delta,
            "has a larger delta than this site's policy allows",
            PrivacyRefusedError,
        )
    if privacy is None:
        return
    target = privacy.training.epsilon if privacy.training is not None else None
    # At a smaller delta than the policy's, epsilon is smaller at the policy's: it is held when the noise is known.
    if target is not None and policy.epsilon_per_run is not None and privacy.delta >= policy.delta:
        yield Rule(
            f"privacy.epsilon_per_run = {policy.epsilon_per_run:g}",
            f"privacy.training.epsilon = {target:g}",
            target <= policy.epsilon_per_run,
            "spends more of a data set than this site's policy allows a run",
            PrivacyRefusedError,
        )


_ACTION = "Reject the study, or have whoever is responsible for policy.toml change it"


def has_policy(folder: SiteFolder) -> bool:
    """Whether there is a policy at this site, or was one.

    Raises:
        ConfigError, WrongStateError: that cannot be told.
    """
    return _is_there(folder.policy) or _is_remembered(folder)


def read_policy(folder: SiteFolder) -> Policy:
    """Read ``policy.toml``, and remember that there is one.

    Raises:
        ConfigError: as ``look_at_policy``. WrongStateError, DiskFullError: the site's database cannot be used.
    """
    given = _given(folder)
    if given is None:
        return Policy()
    _remember(folder)
    return given


def look_at_policy(folder: SiteFolder) -> Policy:
    """What ``policy.toml`` says; the defaults where there never was one. Changes nothing.

    Raises:
        ConfigError: naming the file, each wrong key and what was expected; or it is gone, or somebody else than root
            and the owner of the site's keys could have chosen what is in it.
    """
    return _given(folder) or Policy()


def write_default_policy(folder: SiteFolder) -> None:
    """Give a site that has no policy one to read and change. One that is gone is not replaced."""
    if has_policy(folder):
        return
    descriptor = os.open(folder.policy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(DEFAULT_POLICY_TOML)
    _remember(folder)


def _given(folder: SiteFolder) -> Policy | None:
    if not has_policy(folder):
        return None
    if not _is_there(folder.policy):
        raise ConfigError(
            f"{folder.policy} is gone: this site had a policy",
            action="Put it back, and see who took it away. If the defaults shall hold from now on, say so with an "
            f"empty file: `touch {folder.policy}`",
        )
    text = read_trusted(folder.policy, frozenset({0, owner_of(folder.keys)}))
    return parse_toml(text, folder.policy, Policy)


def _is_there(path: Path) -> bool:
    """A link that leads nowhere is there."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"Cannot look for {path}", got=error.strerror or "") from error
    return True


def _is_remembered(folder: SiteFolder) -> bool:
    if not folder.database.exists():
        return False
    with site_state(folder.database) as state:
        return state.had_policy


def _remember(folder: SiteFolder) -> None:
    with site_state(folder.database) as state:
        state.remember_policy()


def policy_now(folder: SiteFolder) -> Policy:
    """The policy as it is on disk at this moment.

    Raises:
        PolicyError: the file cannot be read, so nothing is allowed.
    """
    try:
        return read_policy(folder)
    except ConfigError as error:
        raise PolicyError("The site's policy cannot be read, so nothing is allowed", got=str(error)) from error


def check_policy_now(folder: SiteFolder, study: Study, now: datetime) -> Policy:
    """Hold a study against its own last day and against the policy as it is on disk at this moment.

    Args:
        now: This machine's time, with its zone.

    Raises:
        PolicyError: the policy does not allow it, or cannot be read. StudyExpiredError.
    """
    policy = policy_now(folder)
    policy.check(study)
    require_valid(study, now)
    return policy


def require_valid(study: Study, now: datetime) -> None:
    """Refuse a study whose last day is over.

    Raises:
        StudyExpiredError: it is.
    """
    today = now.astimezone(UTC).date()
    if study.expires is not None and today > study.expires:
        raise StudyExpiredError(
            f"The study {study.name} has expired",
            expected=f"work until {study.expires.isoformat()} (UTC)",
            got=today.isoformat(),
            action="Have the operator publish the study again with a later day; sites then approve it anew",
        )


def _choices(values: frozenset[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in sorted(values)) + "]"
