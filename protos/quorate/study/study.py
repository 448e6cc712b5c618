"""What was agreed: the study.

An operator writes a TOML file (``StudyFile``). Publishing resolves names into what they stand for (the task's digest,
each site's signing key) and gives the ``Study``, whose canonical JSON (RFC 8785) every site reads, approves and pins.
Its SHA-256 is the study's identity: a changed argument is a different study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from quorate.errors import StudyError
from quorate.identity import SiteName, fingerprint
from quorate.process.printable import hidden_in
from quorate.study.attestation_section import Attestation
from quorate.study.privacy_section import Privacy
from quorate.study.robust_section import Robust
from quorate.study.rules import Rules
from quorate.study.section import Frozen, Positive
from quorate.study.synthetic_section import Synthetic

GUEST_PREFIX = "flower:"
MAX_CANONICAL_BYTES = 1024 * 1024

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
HexKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
TrainingData = Literal["real", "synthetic", "mixed"]
"""Whose records a model is trained on: people's, made ones in their place, or both."""


def _in_json(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises ValueError for what canonical JSON cannot say: dates, infinity, integers beyond 2^53."""
    rfc8785.dumps(value)
    return value


class Rounds(Frozen):
    """How long the study runs and when a round counts."""

    count: int = Field(ge=1, le=100_000, description="rounds that have to count before the study is done")
    quorum: int = Field(ge=1, description="least sites whose updates make a round count")
    deadline_s: Positive = Field(
        default=600.0, description="a phase of a round that takes longer closes without the rest"
    )
    absent_grace_s: NotNegative = Field(default=10.0, description="a site that is gone this long is not waited for")
    checkpoint_every: int = Field(default=10, ge=1, description="rounds between model checkpoints at the server")
    weights: Literal["records", "equal"] = Field(
        default="records", description="how sites count in the average: by their records, or each the same"
    )
    evaluate: Literal["each", "last", "never"] | None = Field(
        default=None,
        description="after which rounds the model is tried on held-out records; absent: each, and the last only in a "
        "study with a [privacy] section",
    )


class Optimizer(Frozen):
    """The federated optimiser that every site applies to the opened average (Reddi et al. 2021, algorithm 2)."""

    name: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"] = Field(
        default="fedavg", description="the rule by which the average of the updates changes the model"
    )
    learning_rate: Positive = Field(default=1.0, description="step of the federated optimiser, not of local training")
    momentum: Fraction = Field(default=0.9, description="FedAvgM: share of the last step that is kept")
    beta1: Fraction = Field(default=0.9, description="FedAdam, FedYogi: decay of the first moment")
    beta2: Fraction = Field(default=0.99, description="FedAdam, FedYogi: decay of the second moment")
    tau: Positive = Field(
        default=1e-3, description="FedAdam, FedYogi: keeps small second moments from blowing up a step"
    )
    proximal_mu: NotNegative = Field(default=0.0, description="FedProx: weight of the pull towards the global model")

    @model_validator(mode="after")
    def _fedprox_pulls(self) -> Self:
        if (self.name == "fedprox") != (self.proximal_mu > 0):
            raise ValueError("proximal_mu must be above 0 with fedprox and is not used without it")
        return self


Mode = Literal["secagg", "enclave", "none"]


class Protection(Frozen):
    """How updates are protected on their way. ``none`` must be asked for here and allowed in each site's policy."""

    mode: Mode = Field(
        default="secagg",
        description="secagg: the server adds what it cannot read; enclave: an attested machine opens updates and adds "
        "them; none: the server can read every update",
    )
    value_bound: Positive = Field(default=4.0, description="each coordinate of an update is clipped to this size")
    colluders: int = Field(
        default=1,
        ge=0,
        description="secagg, enclave: sites that may work together with the server and learn no single update",
    )

    @property
    def summary(self) -> str:
        """For people, in a line."""
        return self.mode if self.mode == "none" else f"{self.mode}, stands {self.colluders} colluding site(s)"


class ReleaseFor(Frozen):
    """Who gets the final model, beside the sites."""

    model: Literal["operator", "sites"] = Field(
        default="sites", description="operator: the operator may fetch it too; sites: it stays with the sites"
    )


class Release(ReleaseFor):
    """The same in the study. Under secure aggregation sites seal the operator's model to the key that is named here.

    ``operator_mark`` is by the operator and for the operator: a study that it did not publish has none that fits
    (``ReleaseKey.mark``), so nobody can show it other sites' keys than those that it published.
    """

    operator_key: HexKey | None = None
    operator_mark: HexKey | None = None

    @property
    def operator_fingerprint(self) -> str:
        """Of the key to which sites seal the model; empty where they do not."""
        return fingerprint(bytes.fromhex(self.operator_key)) if self.operator_key else ""


class OtherVersion(Frozen):
    """A second version of the task that sites may run for a while, so that they can be upgraded one after the other."""

    digest: HexKey = Field(description="what `quorate study digest TASK` prints where that version is installed")
    until: date = Field(description="last day (UTC) on which sites may run it")


class TaskRef(Frozen):
    """The installed task, by entry point name or as ``flower:module:attribute``."""

    name: str = Field(min_length=1, max_length=200)
    digest: HexKey
    also: OtherVersion | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_in_json)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _versions_differ(self) -> Self:
        if self.also is not None and self.also.digest == self.digest:
            raise ValueError("also.digest is that of the version which the study names in any case")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies were published before there was ``also``, and keep their digests."""
        plain: dict[str, Any] = dump(self)
        return plain if self.also is not None else {key: value for key, value in plain.items() if key != "also"}

    @property
    def is_guest(self) -> bool:
        return self.name.startswith(GUEST_PREFIX)

    def accepted(self, today: date) -> tuple[str, ...]:
        """The digests of which a site must have one.

        Args:
            today: In UTC, by the site's clock.
        """
        if self.also is None or today > self.also.until:
            return (self.digest,)
        return (self.digest, self.also.digest)


class Guest(Frozen):
    """A stock Flower ServerApp that runs unchanged over our transport."""

    server_app: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="MODULE:ATTRIBUTE at the server")
    run_config: Annotated[dict[str, str | int | float | bool], AfterValidator(_in_json)] = Field(
        default_factory=dict, description="the app's run configuration, as Flower calls it"
    )


class Site(Frozen):
    name: Name
    signing_key: HexKey

    @property
    def fingerprint(self) -> str:
        return fingerprint(bytes.fromhex(self.signing_key))


class Readable(Frozen):
    """What people read and agree to: no text in it, nor the name of a parameter, may hide or turn round any of it."""

    @model_validator(mode="after")
    def _hides_nothing(self) -> Self:
        for where, text in _texts("", self.model_dump(mode="json")):
            if hidden := hidden_in(text):
                raise ValueError(f"{where} has the character {hidden}, which does not show, or changes what shows")
        return self


def _texts(where: str, value: object) -> Iterator[tuple[str, str]]:
    """Each text in a JSON value, keys too, with the place where it is."""
    match value:
        case str():
            yield where, value
        case dict():
            for key, inner in value.items():
                place = f"{where}.{key}" if where else key
                yield f"a name in {where or 'study'}", key
                yield from _texts(place, inner)
        case list():
            for number, inner in enumerate(value):
                yield from _texts(f"{where}[{number}]", inner)


class Study(Readable):
    """What every site approves. Build it with ``StudyFile.resolve`` or ``Study.from_canonical``."""

    format: Literal["quorate.study/1"] = "quorate.study/1"
    consortium: Name
    name: Name
    purpose: str = Field(min_length=1, max_length=2000)
    expires: date | None = None
    approvals: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    task: TaskRef
    rounds: Rounds
    optimizer: Optimizer = Optimizer()
    protection: Protection = Protection()
    privacy: Privacy | None = None
    training_data: TrainingData = "real"
    synthetic: Synthetic | None = None
    attestation: Attestation | None = None
    robust: Robust | None = None
    release: Release = Release()
    guest: Guest | None = None
    sites: tuple[Site, ...] = Field(min_length=1, max_length=1000)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies were published before there were synthetic data sets and attestation, and keep their digests. A site
        of then refuses a study that says what it does not know, and so never trains on real records in the place of
        made ones, nor sends anything to a machine that nobody appraised."""
        plain: dict[str, Any] = dump(self)
        absent = {"training_data"} if self.training_data == "real" else set()
        absent |= {name for name in ("synthetic", "attestation", "robust") if getattr(self, name) is None}
        return {key: value for key, value in plain.items() if key not in absent}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        names = [site.name for site in self.sites]
        keys = [site.signing_key for site in self.sites]
        if sorted(set(names)) != names:
            raise ValueError("sites must be sorted by name and distinct")
        if len(set(keys)) != len(keys):
            raise ValueError("two sites have the same signing key")
        if self.rounds.quorum > len(names):
            raise ValueError(f"rounds.quorum is {self.rounds.quorum}, but the study has {len(names)} sites")
        if self.approvals is not None and self.approvals > len(names):
            raise ValueError(f"approvals is {self.approvals}, but the study has {len(names)} sites")
        if self.protection.mode != "none" and self.guest is None:
            try:
                floor = Rules(len(names), self.protection.colluders).floor
            except StudyError as error:
                raise ValueError(str(error)) from error
            if self.rounds.quorum < floor:
                raise ValueError(
                    f"rounds.quorum is {self.rounds.quorum}, but {self.protection.mode} among {len(names)} sites "
                    f"of which {self.protection.colluders} may collude needs {floor}"
                )
        if self.protection.mode != "none" and self.guest is not None:
            raise ValueError('a guest app sees every update: its protection.mode can only be "none"')
        if self.is_release_sealed != (self.release.operator_key is not None):
            raise ValueError(
                'release.operator_key goes with release.model = "operator" and protected updates, and only with these'
            )
        if self.release.operator_mark is not None and self.release.operator_key is None:
            raise ValueError("release.operator_mark is made with the key of release.operator_key")
        if self.privacy is not None and self.guest is not None:
            raise ValueError("a guest app's own code trains and averages: Quorate cannot add noise to it")
        if self.privacy is not None and self.privacy.update_clip is not None and self.rounds.weights != "equal":
            raise ValueError(
                'noise on updates hides a site only if its weight tells nothing: set rounds.weights = "equal"'
            )
        if self.privacy is not None and self.privacy.evaluation is not None and not self.evaluations:
            raise ValueError('privacy.evaluation is noise on an evaluation, and rounds.evaluate is "never"')
        if self.attestation is not None and self.protection.mode == "none":
            raise ValueError('[attestation] goes with protection.mode = "secagg", as a second lock, or "enclave"')
        if self.attestation is None and self.protection.mode == "enclave":
            raise ValueError('protection.mode = "enclave" needs [attestation]: which machine may open the updates')
        self._robust_where_it_can_be()
        if self.task.is_guest != (self.guest is not None):
            raise ValueError("a task 'flower:module:app' and a [guest] section go together")
        return self

    def _robust_where_it_can_be(self) -> None:
        if self.robust is None:
            return
        if self.protection.mode != "enclave":
            raise ValueError('[robust] looks at single updates: it goes with protection.mode = "enclave"')
        if self.rounds.weights != "equal":
            raise ValueError('[robust] compares sites: set rounds.weights = "equal"')
        if self.privacy is not None and self.privacy.update_clip is not None:
            raise ValueError("[robust] is no average, and noise on updates is accounted for averages only")
        if self.robust.left_out(self.rounds.quorum) * 2 >= self.rounds.quorum:
            raise ValueError(f"robust.trim leaves nothing of {self.rounds.quorum} sites (rounds.quorum)")

    @model_validator(mode="after")
    def _trains_on_what_it_says(self) -> Self:
        if self.training_data == "real" and self.synthetic is not None:
            raise ValueError('[synthetic] limits made records: it goes with training_data = "synthetic" or "mixed"')
        if self.training_data != "real" and self.guest is not None:
            raise ValueError("a guest app opens data by itself: Quorate cannot say what it trains on")
        mechanisms = set(self.privacy.mechanisms) if self.privacy is not None else set()
        if self.training_data != "synthetic" and mechanisms == {"evaluation"}:
            raise ValueError("name at least one of privacy.training, privacy.update, privacy.average")
        if self.training_data != "real" and self.bounds_training:
            raise ValueError(
                "[privacy.training] is noise on gradients of real records: made ones were paid for when they were made"
            )
        return self

    @property
    def site_names(self) -> tuple[SiteName, ...]:
        return tuple(SiteName(site.name) for site in self.sites)

    @property
    def needed_approvals(self) -> int:
        """How many sites must have approved before any works."""
        return self.approvals or self.rounds.quorum

    @property
    def evaluations(self) -> int:
        """After how many rounds the model is tried on held-out records. A guest app's own are its own affair."""
        if self.guest is not None:
            return 0
        when = self.rounds.evaluate or ("each" if self.privacy is None else "last")
        return {"each": self.rounds.count, "last": 1, "never": 0}[when]

    def evaluates(self, round_number: int) -> bool:
        """Whether the model after this round is tried on held-out records. It is the last rounds' that are."""
        return self.rounds.count - self.evaluations < round_number <= self.rounds.count

    @property
    def bounds_training(self) -> bool:
        """Whether an epsilon bounds what is told of single training records."""
        return self.privacy is not None and self.privacy.training is not None

    @property
    def tells_exact_counts(self) -> bool:
        """Whether counts over held-out records leave a site without noise."""
        return self.evaluations > 0 and (self.privacy is None or self.privacy.evaluation is None)

    @property
    def released_to(self) -> Literal["operator", "sites"]:
        """Who gets the final model. A guest app runs at the server, so its model is there whatever ``release`` says."""
        return "operator" if self.guest else self.release.model

    @property
    def is_release_sealed(self) -> bool:
        """Whether the final model goes to the operator so that the server cannot read it."""
        return is_release_sealed(self.protection, self.release)

    @property
    def is_of_two(self) -> bool:
        """Whether the sum itself gives each site's update to the other one, however it is protected."""
        return len(self.sites) == 2 and self.protection.mode != "none"

    @property
    def kind(self) -> Literal["study", "guest"]:
        return "guest" if self.guest else "study"

    @property
    def protection_summary(self) -> str:
        """For people, in a line: how updates are protected, and what adds them where that is attested."""
        added = f"; added {self.attestation.summary}" if self.attestation is not None else ""
        return f"{self.protection.summary}{added}"

    def canonical(self) -> bytes:
        """The bytes that everybody hashes and signs."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    def unmarked(self) -> bytes:
        """The canonical form without the operator's mark, which is made of it."""
        release = self.release.model_copy(update={"operator_mark": None})
        return self.model_copy(update={"release": release}).canonical()

    def digest(self) -> bytes:
        """SHA-256 of the canonical form, 32 bytes."""
        return hashlib.sha256(self.canonical()).digest()

    @classmethod
    def from_canonical(cls, canonical: bytes) -> Study:
        """Read a study that came over the wire.

        Raises:
            StudyError: not a valid study, not in canonical form, or too large.
        """
        if len(canonical) > MAX_CANONICAL_BYTES:
            raise StudyError(
                "The study is too large",
                expected=f"at most {MAX_CANONICAL_BYTES} bytes in canonical form",
                got=f"{len(canonical)}",
                action="Shorten the task's parameters: sites keep data, studies say what to do with it",
            )
        try:
            study = cls.model_validate_json(canonical)
        except ValidationError as error:
            raise study_error("The study that arrived", error) from error
        if study.canonical() != canonical:
            raise StudyError("The study that arrived is not in canonical form", expected="RFC 8785 JSON")
        return study


def is_release_sealed(protection: Protection, release: ReleaseFor) -> bool:
    return protection.mode != "none" and release.model == "operator"


def study_error(subject: str, error: ValidationError) -> StudyError:
    problems = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'study'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_context=False)
    ]
    shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
    return StudyError(
        f"{subject} has {len(problems)} problem{'s' if len(problems) > 1 else ''}",
        got=shown,
        action="Correct these keys; docs/reference/study.md lists all of them",
    )
