"""The site's policy: what its administrator lets happen here, whatever the consortium publishes.

``policy.toml`` is a file of its own so that it can belong to root and not to the daemon's user. It is read again before
every instruction: a change takes effect at once. A broken file lets nothing through, nor one that anybody else could
have put there, nor one that is gone: the site remembers that it had one. Where there never was a file the defaults
hold, which allow no unprotected study and release no model outside the sites; an empty file says the same. Every number
is a floor or a ceiling; no message of the server is looked at, only the study that was approved here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from quorate.errors import (
    OutsideHoursError,
    PolicyError,
    PrivacyRefusedError,
    ProtectionRefusedError,
    RosterTooSmallError,
    StudyExpiredError,
    SyntheticRefusedError,
)
from quorate.rounds.instruction import Phase
from quorate.study.privacy_section import EvaluationPrivacy
from quorate.study.section import given
from quorate.study.study import Mode, Study, TrainingData
from quorate.study.synthetic_section import Share, Synthetic

SHIPPED_TASKS = ("tabular-classifier", "image-classifier")


_BEGINS_WORK = (Phase.HELLO, Phase.UPLOAD, Phase.GUEST)
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
        default=50,
        ge=2,
        description="least training records (or units) of a data set for DP-SGD, or to make a synthetic set from",
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


class SyntheticPolicy(BaseModel):
    """What may be trained on here, and how good a set must be that was made in the place of records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_data: frozenset[TrainingData] = Field(
        default=frozenset({"real", "synthetic", "mixed"}), description="what studies may train on"
    )
    without_privacy: bool = Field(
        default=False, description="whether a set may be made and used of which no epsilon bounds what it tells"
    )
    largest_epsilon: _Positive = Field(
        default=10.0,
        description="most epsilon for which a set was made; one of thousands promises no more than one without privacy",
    )
    largest_risk: Share | None = Field(
        default=0.09,
        description="most that a set's report found somebody to gain on the real records: by membership, an attribute, "
        "singling out or linking; the default is a convention of the literature",
    )
    largest_utility_loss: Share | None = Field(
        default=0.1, description="most area under the curve that a model loses by training on the set"
    )

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by key; a study has the same keys (``Synthetic.limits``)."""
        return given(self, Synthetic.model_fields)


class AttestedPolicy(BaseModel):
    """Whether an attested machine has to add what leaves this site; the study and the site's ``file`` say which."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    required: bool = Field(
        default=False, description="whether a study must demand an attested machine beside its other protection"
    )
    software: bool = Field(
        default=False,
        description="whether evidence may count that a program makes of itself, for development; it proves nothing",
    )
    file: str = Field(
        default="",
        max_length=1000,
        description="a policy of this site's own, beside policy.toml, which evidence has to meet with the study's; "
        "empty: the study's alone",
    )


class Policy(BaseModel):
    """Floors and ceilings of this site; ``docs/reference/policy.md`` explains each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protection: frozenset[Mode] = Field(
        default=frozenset({"secagg"}),
        description="modes of protection; enclave lets an attested machine read every update, none the server",
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
    dataset_names_in_metrics: bool = Field(
        default=False,
        description="whether the site's own metrics tell the names of its data sets beside their numbers; whoever "
        "reaches `metrics_listen` reads them",
    )
    privacy: PrivacyPolicy = PrivacyPolicy()
    synthetic: SyntheticPolicy = SyntheticPolicy()
    attestation: AttestedPolicy = AttestedPolicy()

    def check(self, study: Study) -> None:
        """Refuse a study that this policy does not allow.

        Raises:
            PolicyError: of the kind of the first rule that refuses, naming its key.
        """
        for rule in self.rules(study):
            rule.require(study)

    def check_task(self, study: Study) -> None:
        """Refuse a study whose task this policy does not name. Raises PolicyError."""
        self._task_rule(study).require(study)

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
        if mode != "none":
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
        yield from _attestation_rules(self.attestation, study)
        yield self._task_rule(study)
        yield Rule(
            f"synthetic.training_data = {_choices(self.synthetic.training_data)}",
            f'training_data = "{study.training_data}"',
            study.training_data in self.synthetic.training_data,
            "trains on what this site's policy does not allow",
            SyntheticRefusedError,
        )
        yield from _privacy_rules(self.privacy, study)

    def _task_rule(self, study: Study) -> Rule:
        return Rule(
            f"tasks = {_choices(self.tasks)}",
            study.task.name,
            study.task.name in self.tasks,
            "runs a task that this site's policy does not allow",
            PolicyError,
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the policy, held against a study. ``problem`` completes "The study NAME ..."."""

    demand: str
    found: str
    is_met: bool
    problem: str
    refusal: type[PolicyError]

    def require(self, study: Study) -> None:
        """Raises ``refusal`` where the rule is not met."""
        if not self.is_met:
            raise self.refusal(
                f"The study {study.name} {self.problem}", expected=self.demand, got=self.found, action=_ACTION
            )


def _attestation_rules(policy: AttestedPolicy, study: Study) -> Iterator[Rule]:
    if policy.required:
        yield Rule(
            "attestation.required = true",
            "no [attestation]" if study.attestation is None else "[attestation]",
            study.attestation is not None,
            "has its updates added by a machine that nobody appraises",
            ProtectionRefusedError,
        )
    if study.attestation is not None and not policy.software:
        environment = study.attestation.policy.environment
        yield Rule(
            "attestation.software = false",
            f'environment = "{environment}"',
            environment == "production",
            "counts evidence that a program makes of itself, which proves nothing",
            ProtectionRefusedError,
        )


def _privacy_rules(policy: PrivacyPolicy, study: Study) -> Iterator[Rule]:
    privacy = study.privacy
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
        # Synthetic records were paid for when they were made; that they were is asked of the set (usable.py).
        is_paid_for = study.training_data == "synthetic"
        bounded_by = "synthetic records" if is_paid_for else "DP-SGD" if "training" in mechanisms else ""
        yield Rule(
            policy.budget,
            bounded_by or "training without privacy",
            bool(bounded_by),
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
