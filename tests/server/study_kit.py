"""Small real stand-ins for a consortium: a study, sites that compute, and a transport in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from quorate_server.rounds.plain_loop import StudyLoop
from quorate_server.rounds.secure.loop import SecureLoop

from quorate.aggregation import plain
from quorate.aggregation.plain import PlainScheme, weight_of
from quorate.errors import BlobMissingError
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import INLINE_BYTES, Blob, BlobId, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, StudyContribution
from quorate.rounds.run import RoundResult
from quorate.study.study import Study
from quorate.tally import BINS, LOSS_ONE
from quorate.wire.messages import (
    contribution_to_bytes,
    instruction_from_bytes,
    instruction_to_bytes,
    reply_from_bytes,
    reply_to_bytes,
    work_from_bytes,
)
from quorate_server.rounds.phases import Arrived, Presence, Status
from quorate_server.rounds.progress import StudyProgress

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


@dataclass
class SimulatedSite:
    """A site that follows the phases: its state is a model and how many rounds it has seen.

    Training moves the model towards the site's own target; the average is added to it as it is.
    """

    name: SiteName
    records: int
    blobs: MemoryBlobs
    study: Study
    model: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(DIMENSION))
    round_number: int = 0
    trained: list[int] = field(default_factory=list)
    journal: dict[MessageId, Reply] = field(default_factory=dict)
    target: float = 0.0

    def __post_init__(self) -> None:
        self.target = float(self.records % 7) / 7

    @property
    def digest(self) -> bytes:
        return blob_id(self.state())

    def state(self) -> bytes:
        return self.model.astype("<f8").tobytes()

    def answer(self, instruction: Instruction) -> Reply:
        """The stored reply to what is known; else the work."""
        if instruction.message_id not in self.journal:
            self.journal[instruction.message_id] = self._work(instruction)
        return self.journal[instruction.message_id]

    def _work(self, instruction: Instruction) -> Reply:
        work = work_from_bytes(instruction.body)
        blob: Blob | None = None
        match instruction.phase:
            case Phase.PREPARE:
                contribution = StudyContribution(dimension=DIMENSION, extras=(self.records, self.records * 3))
            case Phase.TRAIN:
                self._advance(instruction)
                self.trained.append(instruction.round_number)
                weight = weight_of(self.records, work.total_weight)
                scheme = PlainScheme(self.study.protection.value_bound, len(self.study.sites))
                words, clipped = scheme.encode(0.5 * (self.target - self.model), weight)
                blob = self._sent(words.astype("<u4").tobytes())
                extras = (self.records, self.records * LOSS_ONE // 2, clipped)
                contribution = StudyContribution(self.digest, DIMENSION, weight, extras)
            case Phase.EVALUATE:
                self._advance(instruction)
                told = a_tally(self.records) if self.study.evaluates(instruction.round_number) else ()
                contribution = StudyContribution(self.digest, DIMENSION, 0, told)
            case Phase.CHECKPOINT | Phase.RELEASE:
                self._advance(instruction)
                blob = self._sent(self.state())
                contribution = StudyContribution(self.digest, DIMENSION)
            case _:
                raise AssertionError(instruction.phase)
        return Reply(
            instruction.message_id,
            body=contribution_to_bytes(contribution),
            blobs=() if blob is None else (blob,),
            working_s=0.1,
        )

    def _sent(self, data: bytes) -> Blob:
        """Not inline, so that the way through the spool is taken."""
        return self.blobs.put(data)

    def _advance(self, instruction: Instruction) -> None:
        work = work_from_bytes(instruction.body)
        target = instruction.round_number - (instruction.phase is Phase.TRAIN)
        if work.checkpoint is not None and work.checkpoint_round > self.round_number:
            self.model = np.frombuffer(self._fetched(work.checkpoint), dtype="<f8").copy()
            self.round_number = work.checkpoint_round
        for ref in work.sums:
            if self.round_number < ref.round_number <= target:
                words = np.frombuffer(self._fetched(ref.blob), dtype="<u4").astype(np.uint32)
                scheme = PlainScheme(self.study.protection.value_bound, len(self.study.sites))
                self.model = self.model + scheme.decode(words, ref.weight)
                self.round_number = ref.round_number
        assert self.round_number == target, f"{self.name} has no way to the model of round {target}"

    def _fetched(self, blob: Blob) -> bytes:
        return blob.inline if blob.inline is not None else self.blobs.content[blob.id]


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
    events: list[Arrived | Presence] = field(default_factory=list)

    # --- a process's life ---

    def loop(self) -> StudyLoop | SecureLoop:
        """A new process: what was in the pipe is lost, what is stored is not."""
        self.events = [self.presence()]
        kind = StudyLoop if self.study.protection.mode == "none" else SecureLoop
        return kind(RUN, self.study, self, self.progress, self.forgiven, self.clock)

    def presence(self) -> Presence:
        return Presence(dict.fromkeys(self.gone, 0.0))

    def resume(self) -> StudyLoop | SecureLoop:
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


def a_consortium(
    names: Iterable[SiteName] = NAMES, records: Iterable[int] = (30, 20, 40, 10), **changes: Any
) -> MemoryExchange:
    study = a_study(names, **changes)
    blobs = MemoryBlobs()
    sites = {
        name: SimulatedSite(name, count, blobs, study) for name, count in zip(study.site_names, records, strict=False)
    }
    return MemoryExchange(study, Time(), sites, blobs)


def with_contribution(reply: Reply, **changes: Any) -> Reply:
    """A reply whose contribution says something else."""
    from quorate.wire.messages import contribution_from_bytes

    return replace(reply, body=contribution_to_bytes(replace(contribution_from_bytes(reply.body), **changes)))


def small(data: bytes) -> Blob:
    """Inline where it fits."""
    return Blob.of(data) if len(data) <= INLINE_BYTES else Blob(blob_id(data), len(data))


def words(*values: int) -> bytes:
    return np.array(values, dtype=np.int64).astype(np.uint32).astype("<u4").tobytes()


def average(sums: npt.NDArray[np.uint32], weight: int, study: Study) -> npt.NDArray[np.float64]:
    return plain.PlainScheme(study.protection.value_bound, len(study.sites)).decode(sums, weight)
