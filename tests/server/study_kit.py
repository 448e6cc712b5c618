"""Small real stand-ins for a consortium: a study and a transport in memory. Its sites are in ``sites_kit.py``."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from quorate.errors import BlobMissingError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import Blob, BlobId, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.rounds.run import RoundResult, SumOutcome, SumStep
from quorate.study.study import Study
from quorate.tally import BINS, LOSS_ONE
from quorate.wire.messages import (
    instruction_from_bytes,
    instruction_to_bytes,
    reply_from_bytes,
    reply_to_bytes,
)
from quorate.wire.sum_messages import sum_answer_from_bytes, sum_answer_to_bytes
from quorate_server.rounds.phases import Arrived, Presence, Status
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sum_figures import SumFigures
from quorate_server.rounds.sums.loop import SumLoop

RUN = RunId("malignancy-0a1b2c")
NAMES = tuple(SiteName(name) for name in ("east", "north", "south", "west"))
DIMENSION = 5


def a_study(sites: Iterable[str] = NAMES, **changes: Any) -> Study:
    content: dict[str, Any] = {
        "consortium": "north-sea",
        "name": "malignancy",
        "purpose": "Tell malignant from benign",
        "task": {"name": "tabular-classifier", "digest": "ab" * 32},
        "rounds": {"count": 3, "quorum": 3, "deadline_s": 60.0, "absent_grace_s": 5.0, "checkpoint_every": 2},
        "protection": {"mode": "none"},
        "release": {"model": "operator"},
        "sites": [{"name": n, "signing_key": bytes([i]).hex() * 32} for i, n in enumerate(sorted(sites), 1)],
    }
    rounds = content["rounds"] | changes.pop("rounds", {})
    return Study.model_validate(content | {"rounds": rounds} | changes)


class Time:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class MemoryBlobs:
    """Where bulk data lies: the server's spool, as far as the loop can see it."""

    content: dict[BlobId, bytes] = field(default_factory=dict)

    def put(self, data: bytes) -> Blob:
        blob = Blob(blob_id(data), len(data))
        self.content[blob.id] = data
        return blob


def a_tally(records: int) -> tuple[int, ...]:
    """Counts of a two-class evaluation: half of the records positive, all of them right."""
    positives = records // 2
    negatives = records - positives
    members, others = [0] * BINS, [0] * BINS
    members[-1], others[0] = positives, negatives
    return (records * LOSS_ONE // 4, negatives, 0, 0, positives, *members, *others)


class Killed(BaseException):
    """The process ends here. Not an Exception: nothing may catch it."""


Tamper = Callable[[SiteName, Instruction, Reply], "Iterable[Reply]"]


def honest(_: SiteName, __: Instruction, reply: Reply) -> Iterable[Reply]:
    return (reply,)


@dataclass
class MemoryExchange:
    """The loop's transport with the daemon's promises: replies are stored before the loop hears of them, a known
    message is answered from the store, and a commit is what a new process begins with.

    Args:
        tamper: What really arrives instead of a site's reply.
        kill_at: After this many calls the process dies.
    """

    study: Study
    clock: Time
    sites: dict[SiteName, Any]
    blobs: MemoryBlobs
    tamper: Tamper = honest
    kill_at: int = 10**9
    gone: set[SiteName] = field(default_factory=set)
    free: int = 10**12
    calls: int = 0
    progress: StudyProgress = field(default_factory=StudyProgress)
    results: dict[int, RoundResult] = field(default_factory=dict)
    commits: list[StudyProgress] = field(default_factory=list)
    removed: set[BlobId] = field(default_factory=set)
    stored: dict[MessageId, tuple[SiteName, Instruction, Reply]] = field(default_factory=dict)
    refused: dict[MessageId, str] = field(default_factory=dict)
    forgiven: dict[tuple[int, str, SiteName], int] = field(default_factory=dict)
    withdrawn: list[MessageId] = field(default_factory=list)
    sent: list[tuple[SiteName, Instruction]] = field(default_factory=list)
    model: bytes | None = None
    statuses: list[Status] = field(default_factory=list)
    outcomes: list[SumOutcome] = field(default_factory=list)
    seconds: list[Mapping[SumStep, float]] = field(default_factory=list)
    events: list[Arrived | Presence] = field(default_factory=list)

    # --- a process's life ---

    def loop(self) -> SumLoop:
        """A new process: what was in the pipe is lost, what is stored is not."""
        self.events = [self.presence()]
        return SumLoop(RUN, self.study, self, self.progress, self.forgiven, self.clock)

    def presence(self) -> Presence:
        return Presence(dict.fromkeys(self.gone, 0.0))

    def resume(self) -> SumLoop:
        """An operator resumed the run: whoever refused, or was refused, is asked anew."""
        for message, (site, instruction, reply) in self.stored.items():
            if reply.code or message in self.refused:
                key = (instruction.round_number, instruction.phase.value, site)
                self.forgiven[key] = max(self.forgiven.get(key, 0), instruction.attempt + 1)
        return self.loop()

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed

    # --- Exchange ---

    def send(self, site: SiteName, instruction: Instruction) -> None:
        self._step()
        self.sent.append((site, instruction))
        instruction = instruction_from_bytes(instruction_to_bytes(instruction))
        known = self.stored.get(instruction.message_id)
        if known is not None:
            self.events.append(Arrived(site, known[2]))
            return
        if site in self.gone:
            return
        for reply in self.tamper(site, instruction, self.sites[site].answer(instruction)):
            if reply.message_id == instruction.message_id:
                self.stored.setdefault(reply.message_id, (site, instruction, reply))
            self.events.append(Arrived(site, reply_from_bytes(reply_to_bytes(reply))))

    def withdraw(self, messages: Iterable[MessageId]) -> None:
        """Written down as a refusal: whoever wants the work later has to ask under another attempt."""
        self._step()
        for message in messages:
            self.withdrawn.append(message)
            asked = [(site, i) for site, i in self.sent if i.message_id == message]
            if message not in self.stored:
                self.stored[message] = (*asked[-1], Reply(message, "work_withdrawn"))

    def refuse(self, message: MessageId, code: str) -> None:
        self._step()
        self.refused[message] = code

    def next_event(self, timeout_s: float) -> Arrived | Presence | None:
        self._step()
        if self.events:
            return self.events.pop(0)
        self.clock.now_s += timeout_s
        return None

    def open(self, blob: Blob) -> BinaryIO:
        self._step()
        if blob.inline is not None:
            return io.BytesIO(blob.inline)
        if len(self.blobs.content.get(blob.id, b"")) != blob.size:
            raise BlobMissingError("not here")
        return io.BytesIO(self.blobs.content[blob.id])

    def put(self, content: Iterable[bytes]) -> Blob:
        self._step()
        return self.blobs.put(b"".join(content))

    def keep_model(self, blob: Blob) -> None:
        self._step()
        self.model = self.blobs.content[blob.id]

    def free_bytes(self) -> int:
        return self.free

    def commit(self, progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None:
        self._step()
        self.progress = StudyProgress.model_validate_json(progress.model_dump_json())
        self.commits.append(self.progress)
        if result is not None:
            assert result.round_number not in self.results or self.kill_at < 10**9, "a round was counted twice"
            self.results[result.round_number] = result
        for blob in obsolete:
            self.blobs.content.pop(blob, None)
            self.removed.add(blob)
        self._step()  # killed right after the commit, before anything else

    def report(self, status: Status) -> None:
        self.statuses.append(status)

    def measured(self, figures: SumFigures) -> None:
        self.outcomes += figures.outcomes
        if figures.seconds:
            self.seconds.append(figures.seconds)


# --- what a test changes ---


def silent(sites: Iterable[SiteName], phase: Phase, round_number: int = 1, attempts: Iterable[int] = (0,)) -> Tamper:
    """These sites do not answer in this exchange (their work is done, and lost on the way)."""
    return when(sites, phase, lambda reply: None, round_number, attempts)


def when(
    sites: Iterable[SiteName],
    phase: Phase,
    change: Callable[[Reply], Reply | None],
    round_number: int = 1,
    attempts: Iterable[int] = (0, 1, 2, 3),
) -> Tamper:
    """These sites reply something else in this exchange."""
    chosen, tries = set(sites), set(attempts)

    def tamper(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        here = instruction.phase is phase and instruction.round_number == round_number
        if site in chosen and here and instruction.attempt in tries:
            changed = change(reply)
            return () if changed is None else (changed,)
        return (reply,)

    return tamper


def each_of(*tampers: Tamper) -> Tamper:
    """All of these, one after the other."""

    def tamper(site: SiteName, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
        replies = [reply]
        for one in tampers:
            replies = [changed for given in replies for changed in one(site, instruction, given)]
        return replies

    return tamper


def lost(sites: Iterable[SiteName], phase: Phase, attempts: Iterable[int] = (0,)) -> Tamper:
    """These sites fall silent in this exchange of round 1; a hello is asked of them only if they did not reveal."""
    here = silent(sites, phase, attempts=attempts)
    return here if phase is not Phase.HELLO else each_of(silent(sites, Phase.REVEAL, round_number=0), here)


def with_answer(reply: Reply, **changes: Any) -> Reply:
    """A reply whose answer says something else."""
    answer = replace(sum_answer_from_bytes(reply.body), **changes)
    return replace(reply, body=sum_answer_to_bytes(answer))
