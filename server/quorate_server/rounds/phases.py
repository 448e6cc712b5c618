"""How a phase runs, over any transport: sites are asked, and what comes is taken until the phase may close.

When it may close is a rule of its own (``rounds.py``). Which phases there are, what is asked in them and what becomes
of the replies is for the loop that uses this: here a body is bytes, and a reply is the loop's to accept or refuse.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, TypeVar, assert_never

import structlog

from quorate.errors import BaseModelMismatchError, DiskFullError, ModelDisagreementError, QuorateError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import INLINE_BYTES, Blob, BlobId
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.run import Progress, RoundResult, SiteProgress
from quorate.study.study import Study
from quorate_server.rounds.closing_rule import Close, GiveUp, PhaseState, Rule, Wait
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sum_figures import SumFigures

log = structlog.get_logger()

Claim = TypeVar("Claim", bound=Hashable)
STATUS_EVERY_S = 0.1

Work = Callable[[SiteName], tuple[bytes, tuple[Blob, ...]]]
"""What a site is asked: the instruction's body and the blobs that it refers to, the newest last."""

Take = Callable[[SiteName, Reply], None]
"""Uses a reply in which a site did its work. Raises QuorateError to refuse it."""


@dataclass(frozen=True, slots=True)
class Arrived:
    site: SiteName
    reply: Reply


@dataclass(frozen=True, slots=True)
class Presence:
    """For each site that is not there, how many seconds it has been gone."""

    gone_for_s: Mapping[SiteName, float]


@dataclass(frozen=True, slots=True)
class Status:
    """Where the loop is, for those who watch."""

    round_number: int
    phase: str
    sites: tuple[SiteProgress, ...] = ()


class Exchange(Protocol):
    """What a loop needs of a transport. Implementations: our pipe to the daemon, and any Flower Grid."""

    def send(self, site: SiteName, instruction: Instruction) -> None: ...
    def withdraw(self, messages: Iterable[MessageId]) -> None: ...
    def next_event(self, timeout_s: float) -> Arrived | Presence | None: ...
    def open(self, blob: Blob) -> BinaryIO: ...
    def put(self, content: Iterable[bytes]) -> Blob: ...
    def keep_model(self, blob: Blob) -> None: ...
    def free_bytes(self) -> int: ...
    def commit(self, progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None: ...
    def report(self, status: Status) -> None: ...
    def measured(self, figures: SumFigures) -> None: ...

    def refuse(self, message: MessageId, code: str) -> None:
        """This reply could not be used: when the run is resumed, its site is asked again."""
        ...


@dataclass(slots=True)
class PhaseTally:
    """What has come of one phase. ``left_out`` are those whose contributions came and do not count.

    ``reply_blobs`` are the replies' blobs that lie in the spool; sizes are bytes of bodies and blobs.
    """

    standing: PhaseState
    asked: dict[SiteName, Instruction] = field(default_factory=dict)
    left_out: dict[SiteName, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    reply_blobs: set[BlobId] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def contributed(self) -> tuple[SiteName, ...]:
        return tuple(sorted(self.standing.contributed - set(self.left_out)))

    def missing(self) -> dict[str, str]:
        """Who was invited and does not count, with the code of why."""
        return {**self.standing.missing(), **{str(site): code for site, code in self.left_out.items()}}


class Phases:
    """Runs the phases of one run, one after the other. Who is there is remembered from each to the next.

    Args:
        attempts: Under which attempt a site is asked, where it is not the first: (round, phase, site) -> attempt.
    """

    def __init__(
        self,
        run: RunId,
        study: Study,
        exchange: Exchange,
        attempts: Mapping[tuple[int, str, SiteName], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id = run
        self._study = study
        self._digest = study.digest()
        self._exchange = exchange
        self._attempts = attempts
        self._now = monotonic
        self._gone_since_s: dict[SiteName, float] = {}
        self._reported_s = 0.0
        self._report_due_s = math.inf

    def open(
        self,
        phase: Phase,
        round_number: int,
        work: Work,
        take: Take,
        *,
        invited: frozenset[SiteName] | None = None,
        quorum: int | None = None,
        attempt: int | None = None,
    ) -> PhaseTally:
        """Ask all sites and take what comes until the phase may close.

        Args:
            invited: Who is asked, and whose replies count; all sites of the study where it is not said.
            quorum: How many of them have to contribute; the study's where it is not said.
            attempt: Of all sites, where it is not counted for each of them.

        Raises:
            QuorumMissingError: it cannot count.
        """
        rounds = self._study.rounds
        rule = Rule(
            phase,
            frozenset(self._study.site_names) if invited is None else invited,
            rounds.quorum if quorum is None else quorum,
            rounds.deadline_s,
            rounds.absent_grace_s,
            self._study.protection.colluders,
        )
        tally = self._begin(rule)
        for site in sorted(rule.invited):
            self._ask(site, round_number, work, tally, attempt)
        self._report(tally, round_number, force=True)
        while True:
            decision = tally.standing.decide(self._now())
            match decision:
                case Wait(until_s):
                    until_s = min(until_s, self._report_due_s)
                    event = self._exchange.next_event(max(0.0, until_s - self._now()))
                    self._handle(event, tally, take)
                    self._report(tally, round_number)
                case Close():
                    break
                case GiveUp(reason):
                    self._withdraw(tally)
                    raise reason
                case _:
                    assert_never(decision)
        return self._end(tally)

    def ask_one(
        self,
        phase: Phase,
        round_number: int,
        work: Work,
        take: Take,
        *,
        candidates: Sequence[SiteName],
        attempt: int | None = None,
    ) -> PhaseTally:
        """One site after the other, until one of them contributes. Nobody has when none did by the deadline.

        The next one is asked when nobody who was asked can still answer, or when the last one takes too long.
        """
        deadline_s = self._study.rounds.deadline_s
        tally = self._begin(Rule(phase, frozenset(candidates), 1, deadline_s, 0.0, self._study.protection.colluders))
        asked_s = self._now()
        while not tally.standing.contributed and isinstance(decision := tally.standing.decide(self._now()), Wait):
            here = [site for site in candidates if site not in self._gone_since_s]
            fresh = [site for site in here if site not in tally.asked]
            impatient = self._now() - asked_s >= deadline_s / len(candidates)
            if fresh and (impatient or not any(site in tally.standing.outstanding & set(tally.asked) for site in here)):
                self._ask(fresh[0], round_number, work, tally, attempt)
                asked_s = self._now()
                self._report(tally, round_number, force=True)
            self._handle(self._exchange.next_event(min(1.0, max(0.0, decision.until_s - self._now()))), tally, take)
        return self._end(tally)

    def agreement(self, claims: Mapping[SiteName, Claim], tally: PhaseTally) -> tuple[Claim, set[SiteName]]:
        """What most sites say, and who says it; the others are left out. Whoever answered first decides nothing.

        Raises:
            ModelDisagreementError: fewer than the study's quorum agree.
        """
        quorum = self._study.rounds.quorum
        counted = Counter(claims.values()).most_common()
        agreed, count = counted[0] if counted else (None, 0)
        if agreed is None or count < quorum:
            for site in claims:
                self._exchange.refuse(tally.asked[site].message_id, ModelDisagreementError.code)
            raise ModelDisagreementError(
                f"The sites do not hold the same model in the phase {tally.standing.rule.phase!s}",
                expected=f"at least {quorum} sites that agree",
                got=f"groups of {', '.join(str(size) for _, size in counted)}",
                action="Compare the versions of the sites' packages (torch, numpy, quorate); then `quorate run resume`",
            )
        agreeing = {site for site, claim in claims.items() if claim == agreed}
        tally.left_out |= dict.fromkeys(set(claims) - agreeing, BaseModelMismatchError.code)
        return agreed, agreeing

    # --- asking ---

    def _begin(self, rule: Rule) -> PhaseTally:
        return PhaseTally(PhaseState(rule, self._now(), gone_since_s=self._gone_since_s))

    def _ask(
        self, site: SiteName, round_number: int, work: Work, tally: PhaseTally, attempt: int | None = None
    ) -> None:
        instruction = self._instruction(tally.standing.rule.phase, round_number, site, work, attempt)
        tally.asked[site] = instruction
        # A site that is up to date fetches the newest blob alone.
        tally.bytes_down += len(instruction.body) + sum(blob.size for blob in instruction.blobs[-1:])
        self._exchange.send(site, instruction)

    def _instruction(
        self, phase: Phase, round_number: int, site: SiteName, work: Work, attempt: int | None
    ) -> Instruction:
        if attempt is None:
            attempt = self._attempts.get((round_number, phase.value, site), 0)
        body, blobs = work(site)
        return Instruction(
            message_id=message_id(self._run_id, round_number, phase, attempt, site),
            run=self._run_id,
            round_number=round_number,
            phase=phase,
            attempt=attempt,
            study_digest=self._digest,
            deadline_s=self._study.rounds.deadline_s,
            body=body,
            blobs=blobs,
        )

    def _withdraw(self, tally: PhaseTally) -> None:
        outstanding = tally.standing.outstanding & set(tally.asked)
        self._exchange.withdraw(tally.asked[site].message_id for site in sorted(outstanding))

    def _end(self, tally: PhaseTally) -> PhaseTally:
        self._withdraw(tally)
        tally.seconds = self._now() - tally.standing.opened_s
        return tally

    # --- what comes ---

    def _handle(self, event: Arrived | Presence | None, tally: PhaseTally, take: Take) -> None:
        match event:
            case Arrived(site, reply) if site in tally.asked and tally.asked[site].message_id == reply.message_id:
                if site not in tally.standing.outstanding:
                    return  # a reply is counted at most once
                tally.bytes_up += len(reply.body) + sum(blob.size for blob in reply.blobs)
                tally.reply_blobs |= {blob.id for blob in reply.blobs if blob.inline is None}
                tally.standing = self._take_reply(site, reply, tally.standing, take)
            case Presence():
                self._note_presence(event)
                tally.standing = tally.standing.with_presence(self._gone_since_s)
            case _:
                pass

    def _take_reply(self, site: SiteName, reply: Reply, standing: PhaseState, take: Take) -> PhaseState:
        if reply.code:
            log.warning("site refused", run=self._run_id, site=site, phase=standing.rule.phase.value, code=reply.code)
            refused = standing.with_refusal(
                site, reply.code, reply.alleged if reply.alleged in self._study.site_names else ""
            )
            for name in set(refused.named) - set(standing.named):
                log.warning("more sites than may lie blame one", run=self._run_id, site=name, code=reply.code)
            return refused
        try:
            take(site, reply)
        except QuorateError as error:
            log.warning("contribution refused", run=self._run_id, site=site, code=error.code, reason=str(error))
            self._exchange.refuse(reply.message_id, error.code)
            return standing.with_refusal(site, error.code)
        return standing.with_contribution(site)

    def _note_presence(self, presence: Presence) -> None:
        now = self._now()
        self._gone_since_s = {site: now - seconds for site, seconds in presence.gone_for_s.items()}

    # --- those who watch ---

    def _report(self, tally: PhaseTally, round_number: int, *, force: bool = False) -> None:
        now = self._now()
        due_s = self._reported_s + STATUS_EVERY_S
        if not force and now < due_s:  # compared as a time: a rounded difference may still be too short when it is due
            self._report_due_s = due_s
            return
        self._reported_s, self._report_due_s = now, math.inf
        standing = tally.standing

        def of(site: SiteName) -> SiteProgress:
            if site in standing.contributed:
                return SiteProgress(site, Progress.REPLIED)
            if site in standing.refused:
                return SiteProgress(site, Progress.REFUSED, standing.refused[site])
            return SiteProgress(site, Progress.ABSENT if site in standing.gone_since_s else Progress.WORKING)

        sites = tuple(of(site) for site in sorted(standing.rule.invited))
        self._exchange.report(Status(round_number, standing.rule.phase.value, sites))


def settled(exchange: Exchange, blob: Blob) -> Blob:
    """A blob that came inline is put into the spool, where checkpoints and models are kept."""
    return blob if blob.inline is None else exchange.put([blob.inline])


def inlined(exchange: Exchange, blob: Blob) -> Blob:
    """A stored blob with its content, where that is little enough to travel inside a message."""
    if blob.size > INLINE_BYTES:
        return blob
    with exchange.open(blob) as file:
        return Blob(blob.id, blob.size, file.read())


def require_room(exchange: Exchange, update_bytes: int, sites: int, beside_bytes: int = 0) -> None:
    """Room for an update of every site and the sum, before anybody is asked to train for it.

    Args:
        beside_bytes: What else the round puts on the disk.

    Raises:
        DiskFullError: there is not so much.
    """
    needed, free = update_bytes * (sites + 1) + beside_bytes, exchange.free_bytes()
    if free < needed:
        raise DiskFullError(
            "The server's disk has no room for this round's updates",
            expected=f"{needed} bytes free",
            got=f"{free}",
            action="Free some space at the server's spool folder, then `quorate run resume`",
        )
