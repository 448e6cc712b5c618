"""Sites that take part in sums as real ones do, but whose training is a line of numpy."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.aggregation import words
from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import WEIGHT_ONE, PlainScheme, weight_of
from quorate.errors import QuorateError, VoteRefusedError
from quorate.identity import SiteName
from quorate.process.randomness import SystemRandomness
from quorate.rounds.blobs import Blob, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply
from quorate.secagg.opening import Opener, Opening
from quorate.secagg.participant import Ballot, Member, Participant
from quorate.secagg.release import OpenedRelease, ReleaseKey, ReleaseTerms, released, seal_release
from quorate.secagg.study_key import StudyKey, join_parts, make_parts, open_stream, seal_stream
from quorate.secagg.terms import Hello, Layout, Terms, Vote, checkpointed
from quorate.study.rules import Rules
from quorate.study.study import Study
from quorate.tally import LOSS_ONE
from quorate.wire.sum_messages import (
    PlainOpening,
    SumAnswer,
    SumRef,
    SumWork,
    opening_from_bytes,
    plain_opening_from_bytes,
    shares_to_bytes,
    sum_answer_to_bytes,
    sum_work_from_bytes,
    words_to_bytes,
)
from quorate.wire.sum_messages import shares_from_bytes as boxes_from_bytes
from quorate_client.rounds.sums.votes import Members, check
from tests.server.study_kit import DIMENSION, NAMES, RUN, MemoryBlobs, MemoryExchange, Time, a_study, a_tally

OWN_COUNTS = 4
OPERATOR = ReleaseKey(X25519PrivateKey.from_private_bytes(bytes(range(32))))
"""To whom models are sealed."""


@dataclass(frozen=True)
class Keys:
    """Of one site."""

    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sealing: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    @property
    def public(self) -> bytes:
        return self.signing.public_key().public_bytes_raw()


@dataclass
class SimulatedSite:
    """A site that follows the exchanges of sums, encrypted or plain. Its model is a vector; training moves it towards
    the site's own target, and the average is added to it as it is.

    ``sent`` holds the exact integers of its updates, by round and attempt; ``opened`` those of the sums that it
    opened and the counts beside them, by round; ``tells`` what it says of the last rounds.
    """

    name: SiteName
    records: int
    blobs: MemoryBlobs
    study: Study
    keys: Keys = field(default_factory=Keys)
    sealing_keys: Mapping[SiteName, bytes] = field(default_factory=dict)
    model: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(DIMENSION))
    round_number: int = 0
    before: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(DIMENSION))
    key: StudyKey | None = None
    participant: Participant | None = None
    statistics: tuple[int, ...] = ()
    ballots: list[Ballot] = field(default_factory=list)
    locked: dict[int, list[Members]] = field(default_factory=dict)
    trained: list[tuple[int, int]] = field(default_factory=list)
    sent: dict[tuple[int, int], npt.NDArray[np.int64]] = field(default_factory=dict)
    opened: dict[int, tuple[npt.NDArray[np.int64], tuple[int, ...]]] = field(default_factory=dict)
    journal: dict[MessageId, Reply] = field(default_factory=dict)
    tells: Callable[[int], Mapping[int, Mapping[str, float]]] = lambda number: {}
    more_counts: int = 0
    """Beside those of an evaluation of two classes."""

    @property
    def is_plain(self) -> bool:
        return self.study.protection.mode == "none"

    @property
    def scheme(self) -> Packing | PlainScheme:
        kind = PlainScheme if self.is_plain else Packing
        return kind(self.study.protection.value_bound, len(self.study.sites))

    @property
    def packing(self) -> Packing:
        assert isinstance(self.scheme, Packing)
        return self.scheme

    @property
    def target(self) -> float:
        return self.records % 7 / 7

    @property
    def digest(self) -> bytes:
        return blob_id(self.state())

    def state(self) -> bytes:
        return _state(self.model, self.statistics)

    def restart(self) -> None:
        """The process ended; what is on disk is left."""
        self.participant = None

    def answer(self, instruction: Instruction) -> Reply:
        """The stored reply to what is known; else the work."""
        if instruction.message_id not in self.journal:
            try:
                reply = self._work(instruction)
            except QuorateError as error:
                reply = Reply.refusing(instruction.message_id, error)
            self.journal[instruction.message_id] = reply
        return self.journal[instruction.message_id]

    def _work(self, instruction: Instruction) -> Reply:
        work = sum_work_from_bytes(instruction.body)
        number, blobs = instruction.round_number, ()
        match instruction.phase:
            case Phase.KEYS:
                answer = self._make_parts()
            case Phase.HELLO:
                answer = SumAnswer(hello=self._hello(number, instruction.attempt, work))
            case Phase.UPLOAD:
                answer, blobs = self._upload(work, instruction)
            case Phase.VOTE:
                assert work.shares is not None
                boxes = boxes_from_bytes(self._fetched(work.shares))
                vote = self._of(instruction).vote(work.survivors, work.digest, boxes, lambda b: self._lock(number, b))
                answer = SumAnswer(vote=vote)
            case Phase.REVEAL:
                answer = SumAnswer(reveal=self._of(instruction).reveal(work.votes))
                if number <= self.study.rounds.count:
                    answer = replace(answer, hello=self._hello(number + 1, instruction.attempt, work))
            case Phase.CHECKPOINT:
                answer, blobs = self._checkpoint(instruction)
            case Phase.RELEASE:
                answer, blobs = self._release(work)
            case _:
                raise AssertionError(instruction.phase)
        return Reply(instruction.message_id, body=sum_answer_to_bytes(answer), blobs=blobs, working_s=0.1)

    def _release(self, work: SumWork) -> tuple[SumAnswer, tuple[Blob, ...]]:
        count = self.study.rounds.count
        if self.is_plain:
            self._advance(work, count, None)
            sent = (self.blobs.put(self.state()),) if self.study.release.model == "operator" else ()
            return SumAnswer(model=self.digest), sent
        member = self._member(work)
        self._advance(work, count, member)
        answer = SumAnswer(model=member.study_key.model(self.digest), metrics=self.tells(count + 2))
        if not self.study.is_release_sealed:
            return answer, ()
        terms = ReleaseTerms.of(self.study, RUN)
        sealed = self.blobs.put(b"".join(seal_release(io.BytesIO(self.state()), member.study_key, terms)))
        vote = Vote(self.name, self.keys.signing.sign(released(terms, sealed.id)))
        return replace(answer, vote=vote), (sealed,)

    def _hello(self, number: int, attempt: int, work: SumWork) -> Hello:
        terms = Terms(self.study.digest(), RUN, number, attempt)
        self.participant = Participant(terms, self._member(work), SystemRandomness())
        return self.participant.hello()

    def _lock(self, number: int, ballot: Ballot) -> None:
        """By the rule of real sites, in one run."""
        earlier, members = self.locked.setdefault(number, []), tuple((site, "") for site in ballot.survivors)
        check(members, earlier, self.study.protection.colluders)
        earlier.append(members)
        self.ballots.append(ballot)

    def _make_parts(self) -> SumAnswer:
        return SumAnswer(
            parts=make_parts(
                self.study.digest(), RUN, self.name, self.sealing_keys, self.keys.signing.sign, SystemRandomness()
            )
        )

    def _member(self, work: SumWork) -> Member:
        roster = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in self.study.sites}
        rules = Rules(len(roster), self.study.protection.colluders)
        if self.key is None:
            digest = self.study.digest()
            self.key = join_parts(work.parts, digest, RUN, self.name, self.keys.sealing, roster, rules)
        return Member(self.name, roster, rules, self.keys.signing, self.key)

    def _of(self, instruction: Instruction) -> Participant:
        wanted = instruction.round_number, instruction.attempt
        if self.participant is None or (self.participant.terms.round_number, self.participant.terms.attempt) != wanted:
            raise VoteRefusedError("started again")
        return self.participant

    def _train(self, instruction: Instruction) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
        """An update, and the counts beside it."""
        key = instruction.round_number, instruction.attempt
        self.trained.append(key)
        weight = weight_of(self.records, self.statistics[0])
        update = (0.5 * (self.target - self.model)).astype(np.float32)
        self.sent[key], clipped = self.scheme.quantise(update, weight)
        return update, (weight, self.records, self.records * LOSS_ONE // 2, clipped)

    def _told(self, number: int) -> tuple[int, ...]:
        """Of an evaluation of the model that a sum starts from."""
        return (*a_tally(self.records), *(0,) * self.more_counts) if self.study.evaluates(number - 1) else ()

    def _upload(self, work: SumWork, instruction: Instruction) -> tuple[SumAnswer, tuple[Blob, ...]]:
        number = instruction.round_number
        if not self.is_plain:
            return self._upload_secretly(work, instruction)
        self._advance(work, number - 1, None)
        if number == 0:
            return SumAnswer(plain_counts=(self.records, self.records * 3), dimension=DIMENSION), ()
        own, updates = (0,) * OWN_COUNTS, ()
        if number <= self.study.rounds.count:
            _, own = self._train(instruction)
            # Not inline, so that the way through the spool is taken.
            updates = (self.blobs.put(self.sent[number, instruction.attempt].astype("<u4").tobytes()),)
        counts = (*own, *self._told(number))
        return SumAnswer(plain_counts=counts, has_update=bool(updates), model=self.digest), updates

    def _upload_secretly(self, work: SumWork, instruction: Instruction) -> tuple[SumAnswer, tuple[Blob, ...]]:
        participant = self._of(instruction)
        number, ciphertext = instruction.round_number, None
        self._advance(work, number - 1, self._member(work))
        trains = 1 <= number <= self.study.rounds.count
        counts: tuple[int, ...] = (*(0,) * OWN_COUNTS, *self._told(number))
        if number == 0:
            counts = (self.records, self.records * 3)
        polynomials = self.packing.polynomials(DIMENSION) if trains else 0
        participant.begin_upload(work.hellos, self.digest if number else b"", Layout(polynomials, len(counts)))
        if trains:
            update, own = self._train(instruction)
            lanes = self.packing.encode(update, own[0])[0] >> self.packing.delta_bits
            ciphertext = self.blobs.put(words.pack(participant.encrypt(0, lanes, self.packing.delta_bits)))
            counts = (*own, *self._told(number))
        masked, boxes = participant.finish_upload(counts)
        shares = self.blobs.put(shares_to_bytes(boxes))
        dimension = DIMENSION if number == 0 else 0
        answer = SumAnswer(
            counts=words_to_bytes(masked),
            dimension=dimension,
            has_update=ciphertext is not None,
            model=participant.model,
            metrics=self.tells(number),
            opened=tuple(tuple(site for site, _ in members) for members in self.locked.get(number, [])),
        )
        return answer, (shares,) if ciphertext is None else (ciphertext, shares)

    def _checkpoint(self, instruction: Instruction) -> tuple[SumAnswer, tuple[Blob, ...]]:
        if self.is_plain:
            return SumAnswer(), (self.blobs.put(_state(self.before, self.statistics)),)
        self._of(instruction)
        assert self.key is not None
        number = instruction.round_number - 2
        content, purpose = _state(self.before, self.statistics), b"checkpoint" + number.to_bytes(8, "big")
        sealed = self.blobs.put(b"".join(seal_stream([content], self.key, purpose)))
        signature = self.keys.signing.sign(checkpointed(self.study.digest(), RUN, number, sealed.id))
        return SumAnswer(vote=Vote(self.name, signature)), (sealed,)

    def _advance(self, work: SumWork, target: int, member: Member | None) -> None:
        if work.checkpoint is not None and self.round_number < work.checkpoint_round <= target:
            state = self._fetched(work.checkpoint)
            if member is not None:
                purpose = b"checkpoint" + work.checkpoint_round.to_bytes(8, "big")
                state = b"".join(open_stream(io.BytesIO(state), member.study_key, purpose))
            self.model = np.frombuffer(state[: 8 * DIMENSION], "<f8").copy()
            self.statistics = tuple(np.frombuffer(state[8 * DIMENSION :], "<i8").tolist())
            self.round_number = work.checkpoint_round
        for ref in work.sums:
            trains = 1 <= ref.round_number <= self.study.rounds.count
            if not (self.round_number < ref.round_number <= target if trains else ref.round_number == 0):
                continue
            sums, counts = self.open(ref, DIMENSION if trains else 0, member)
            if not trains:
                self.statistics = counts
            else:
                self.opened[ref.round_number] = sums, counts
                self.before = self.model
                self.model = self.model + sums * (self.scheme.step * WEIGHT_ONE / counts[0])
                self.round_number = ref.round_number
        assert self.round_number == max(0, target), f"{self.name} has no way to the model of round {target}"

    def open(self, ref: SumRef, dimension: int, member: Member | None) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
        if member is None:
            counts = plain_opening_from_bytes(self._fetched(ref.opening)).counts
            content = self._fetched(ref.updates) if ref.updates is not None else b""
            return np.frombuffer(content, "<i4").astype(np.int64), counts
        opening = opening_from_bytes(self._fetched(ref.opening))
        terms = Terms(self.study.digest(), RUN, ref.round_number, ref.attempt)
        polynomials = self.packing.polynomials(dimension)
        opener = Opener(opening, terms, polynomials, member.roster, member.rules, member.study_key)
        sums = np.zeros(0, np.int64)
        if dimension:
            assert ref.updates is not None
            total = words.unpack(self._fetched(ref.updates))
            sums = self.packing.decode(opener.piece(total, self.packing), dimension)
        return sums, opener.counts()

    def _fetched(self, blob: Blob) -> bytes:
        return blob.inline if blob.inline is not None else self.blobs.content[blob.id]


def _state(model: npt.NDArray[np.float64], statistics: tuple[int, ...]) -> bytes:
    return model.astype("<f8").tobytes() + np.array(statistics, "<i8").tobytes()


def a_consortium(
    names: Iterable[SiteName] = NAMES, records: Iterable[int] = (30, 20, 40, 10), mode: str = "none", **changes: Any
) -> MemoryExchange:
    """Sites with keys of their own. Under secure aggregation, of four of them three have to vote, two shares open."""
    keys = {name: Keys() for name in sorted(names)}
    roster = [{"name": name, "signing_key": key.public.hex()} for name, key in keys.items()]
    release = {"model": "operator"} | ({"operator_key": OPERATOR.public_key.hex()} if mode == "secagg" else {})
    unsigned = a_study(keys, **{"protection": {"mode": mode}, "release": release} | changes)
    study = Study.model_validate(unsigned.model_dump(mode="json") | {"sites": roster})
    blobs, sealing = MemoryBlobs(), {name: key.sealing.public_key().public_bytes_raw() for name, key in keys.items()}
    sites = {
        name: SimulatedSite(name, count, blobs, study, key, sealing)
        for (name, key), count in zip(keys.items(), records, strict=False)
    }
    return MemoryExchange(study, Time(), sites, blobs)


def opened(exchange: MemoryExchange) -> bytes:
    """The released model, as the operator has it."""
    assert exchange.model is not None
    if exchange.study.protection.mode == "none":
        return exchange.model
    roster = {SiteName(site.name): bytes.fromhex(site.signing_key) for site in exchange.study.sites}
    rules = Rules(len(roster), exchange.study.protection.colluders)
    terms = ReleaseTerms.of(exchange.study, RUN)
    return b"".join(OpenedRelease([exchange.model], OPERATOR, terms, roster, rules))


def exact_sum(exchange: MemoryExchange, survivors: Iterable[SiteName], key: tuple[int, int]) -> npt.NDArray[np.int64]:
    """What the survivors sent, added up."""
    total: npt.NDArray[np.int64] = sum(
        (exchange.sites[site].sent[key] for site in survivors), start=np.zeros(DIMENSION, np.int64)
    )
    return total


def opening_of(exchange: MemoryExchange, number: int) -> Opening | PlainOpening:
    """What the server keeps of a closed sum."""
    (stored,) = [stored for stored in exchange.progress.sums if stored.round_number == number]
    content = exchange.blobs.content[stored.opening.id]
    read = plain_opening_from_bytes if exchange.study.protection.mode == "none" else opening_from_bytes
    return read(content)
