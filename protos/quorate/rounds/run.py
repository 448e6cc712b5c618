"""A run as operators, logs and reports see it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from quorate.errors import QuorateError
from quorate.identity import RunId, SiteName


class RunState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in (RunState.COMPLETED, RunState.STOPPED, RunState.FAILED)


class SumStep(StrEnum):
    """What the server itself does with the replies of a sum: read them, hold them against the rules, add them."""

    PARSE = "parse"
    CHECK = "check"
    ADD = "add"


class SumOutcome(StrEnum):
    """What became of an attempt at a secure sum.

    It was opened by the sites, was given up before they could (and is begun anew), or was closed and does not open.
    """

    OPENED = "opened"
    BEGUN_ANEW = "begun_anew"
    NOT_OPENED = "not_opened"


class Progress(StrEnum):
    """How far a site is in the phase that is open."""

    INVITED = "invited"
    WORKING = "working"
    REPLIED = "replied"
    REFUSED = "refused"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class SiteProgress:
    site: SiteName
    state: Progress
    code: str = ""


class AppraisalState(StrEnum):
    """How far a site is with the attested machine that adds."""

    ASKED = "asked"
    TRUSTED = "trusted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class SiteAppraisal:
    """What is known outside of a site of its last appraisal.

    It asked for evidence; it refused it, and told the code in the open; or it sent something that it seals to a machine
    that it trusts and to no other. Times are Unix seconds of the server's clock, 0 where they were before it started.

    Args:
        kind: Of the evidence that it was shown last; empty where that is not known.
        heard_unix_s: When it last said so by a reply.
    """

    site: SiteName
    state: AppraisalState
    code: str = ""
    kind: str = ""
    asked_unix_s: float = 0.0
    heard_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round that counted. ``metrics`` are pooled over the sites; ``missing`` maps a site to the code of why."""

    round_number: int
    contributed: tuple[SiteName, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunView:
    """Everything an operator may see of a run at one moment. Times are Unix seconds of the server's clock.

    ``attested_by`` are the kinds of evidence of which the study accepts one; empty where it demands none.
    """

    run: RunId
    study: str
    study_digest: bytes
    kind: str
    protection: str
    state: RunState
    rounds: int
    round_number: int = 0
    phase: str = ""
    reason: QuorateError | None = None
    sites: tuple[SiteProgress, ...] = ()
    results: tuple[RoundResult, ...] = ()
    started_unix_s: float = 0.0
    changed_unix_s: float = 0.0
    model_available: bool = False
    attested_by: tuple[str, ...] = ()
    appraisals: tuple[SiteAppraisal, ...] = ()
