"""When a phase of a round may close: a pure rule.

A phase invites every site of the roster. It closes when everybody that can still answer has answered and the quorum is
reached, or at its deadline with a quorum. It gives up when the quorum can no longer be reached, or at the deadline
without one. A site whose connection is lost is waited for during a grace period, so that a restart of the site costs
nobody anything and a dead site costs the others little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from quorate.errors import QuorumMissingError
from quorate.identity import SiteName
from quorate.rounds.instruction import Phase


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold for a phase to count. Times are seconds on one monotonic clock; so many sites may lie."""

    phase: Phase
    invited: frozenset[SiteName]
    quorum: int
    deadline_s: float
    absent_grace_s: float
    colluders: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to decide before ``until_s``, unless something happens."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Close:
    """The phase counts, with those who contributed."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The phase cannot count."""

    reason: QuorumMissingError


Decision = Wait | Close | GiveUp


@dataclass(frozen=True, slots=True)
class PhaseState:
    """What has happened in an open phase.

    ``gone_since_s`` holds the sites without a live connection, with the time since when; ``alleged`` whom those who
    refused say is to blame.
    """

    rule: Rule
    opened_s: float
    contributed: frozenset[SiteName] = frozenset()
    refused: Mapping[SiteName, str] = field(default_factory=dict)
    gone_since_s: Mapping[SiteName, float] = field(default_factory=dict)
    alleged: Mapping[SiteName, str] = field(default_factory=dict)

    def with_contribution(self, site: SiteName) -> PhaseState:
        return replace(self, contributed=self.contributed | {site})

    def with_refusal(self, site: SiteName, code: str, alleged: str = "") -> PhaseState:
        said = {**self.alleged, site: alleged} if alleged and alleged != site else self.alleged
        return replace(self, refused={**self.refused, site: code}, alleged=said)

    def with_presence(self, gone_since_s: Mapping[SiteName, float]) -> PhaseState:
        return replace(self, gone_since_s=dict(gone_since_s))

    @property
    def named(self) -> tuple[str, ...]:
        """Whom more sites blame than may lie: one of them is honest. Anybody else is named to nobody."""
        counted = Counter(self.alleged.values())
        return tuple(sorted(name for name, count in counted.items() if count > self.rule.colluders))

    @property
    def outstanding(self) -> frozenset[SiteName]:
        return self.rule.invited - self.contributed - set(self.refused)

    def missing(self) -> dict[str, str]:
        """Who did not contribute, with the code of why: the refusal's own, ``absent`` or ``late``."""
        silent: dict[str, str] = {site: "absent" if site in self.gone_since_s else "late" for site in self.outstanding}
        return {**silent, **{str(site): code for site, code in self.refused.items()}}

    def decide(self, now_s: float) -> Decision:
        """The rule itself; called at each event and at the time that the last ``Wait`` named."""
        rule = self.rule
        deadline = self.opened_s + rule.deadline_s
        enough = len(self.contributed) >= rule.quorum
        possible = len(self.contributed) + len(self.outstanding) >= rule.quorum
        if not possible or (now_s >= deadline and not enough):
            return GiveUp(self._quorum_missing())
        if not enough:
            return Wait(deadline)
        grace_ends = [
            min(deadline, self.gone_since_s[site] + rule.absent_grace_s) if site in self.gone_since_s else deadline
            for site in self.outstanding
        ]
        end = max(grace_ends, default=now_s)
        return Close() if end <= now_s else Wait(min(time for time in grace_ends if time > now_s))

    def _quorum_missing(self) -> QuorumMissingError:
        missing = ", ".join(f"{site} ({code})" for site, code in sorted(self.missing().items())) or "none"
        error = QuorumMissingError(
            f"Too few sites took part in the phase {self.rule.phase!s}",
            expected=f"at least {self.rule.quorum} of {len(self.rule.invited)} sites",
            got=f"{len(self.contributed)}; missing: {missing}"
            + "".join(f"; more sites than may lie say that it is the fault of {name}" for name in self.named),
            action="See what the missing sites' codes mean (docs/reference/errors.md), then `quorate run resume`",
        )
        error.codes = tuple(self.missing().values())
        return error
