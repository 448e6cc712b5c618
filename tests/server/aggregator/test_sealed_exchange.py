"""The exchange inside of the attested machine: opens what sites sealed, signs what it asks, believes nothing else."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import pytest

from quorate.attestation.sealing import EnclaveKeys, blob_key, reply_context, seal
from quorate.errors import BlobMissingError, DiskFullError, QuorateError
from quorate.identity import SiteName
from quorate.process.chunked_aead import CHUNK_BYTES, seal_chunks
from quorate.rounds.blobs import MAX_BLOB_BYTES, Blob, BlobId, blob_id
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.run import RoundResult
from quorate.wire.attestation_messages import sealed_to_bytes
from quorate_server.aggregator.sealed_exchange import MOST_REPETITIONS, SealedExchange
from quorate_server.rounds.phases import Arrived, Presence, Status
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sum_figures import SumFigures
from tests.attested_machine import SIGNING, attested_study
from tests.server.study_kit import RUN

EAST, WEST = SiteName("east"), SiteName("west")
STUDY = attested_study()


@dataclass
class Outside:
    """The connection to the server, which does as a test says."""

    stored: dict[BlobId, bytes] = field(default_factory=dict)
    sent: list[tuple[SiteName, Instruction]] = field(default_factory=list)
    forgotten: list[MessageId] = field(default_factory=list)
    refused: dict[MessageId, str] = field(default_factory=dict)
    withdrawn: list[MessageId] = field(default_factory=list)
    removed: set[BlobId] = field(default_factory=set)
    arriving: list[Arrived | Presence] = field(default_factory=list)
    most_read: int = 0
    full: bool = False

    def send(self, site: SiteName, instruction: Instruction) -> None:
        self.sent.append((site, instruction))

    def withdraw(self, messages: Iterable[MessageId]) -> None:
        self.withdrawn += messages

    def refuse(self, message: MessageId, code: str) -> None:
        self.refused[message] = code

    def again(self, message: MessageId) -> None:
        self.forgotten.append(message)

    def next_event(self, timeout_s: float) -> Arrived | Presence | None:
        return self.arriving.pop(0) if self.arriving else None

    def open(self, blob: Blob) -> BinaryIO:
        return io.BytesIO(blob.inline if blob.inline is not None else self.stored[blob.id])

    def read_at(self, blob: Blob, start: int, length: int) -> bytes:
        self.most_read = max(self.most_read, length)
        if blob.id not in self.stored:
            raise BlobMissingError("Gone")
        return self.stored[blob.id][start : start + length]

    def put(self, content: Iterable[bytes]) -> Blob:
        if self.full:
            raise DiskFullError("Full")
        return self.keep(b"".join(content))

    def keep(self, data: bytes) -> Blob:
        blob = Blob(blob_id(data), len(data))
        self.stored[blob.id] = data
        return blob

    def keep_model(self, blob: Blob) -> None: ...
    def free_bytes(self) -> int:
        return 0

    def commit(self, progress: StudyProgress, result: RoundResult | None, obsolete: set[BlobId]) -> None:
        self.removed |= obsolete

    def report(self, status: Status) -> None: ...
    def measured(self, figures: SumFigures) -> None: ...


class Enclave:
    """A machine, and sites that answer it."""

    def __init__(self) -> None:
        self.outside, self.keys = Outside(), EnclaveKeys()
        self.exchange = SealedExchange(RUN, STUDY, self.outside, self.keys)

    def ask(self, site: SiteName = EAST, phase: Phase = Phase.UPLOAD, attempt: int = 0) -> Instruction:
        name = message_id(RUN, 1, phase, attempt, site)
        self.exchange.send(site, Instruction(name, RUN, 1, phase, attempt, STUDY.digest(), 60.0, b"work"))
        return self.outside.sent[-1][1]

    def hear(self, reply: Reply, site: SiteName = EAST) -> Reply | None:
        """What the loop is told of a reply that the server says is this site's."""
        self.outside.arriving.append(Arrived(site, reply))
        event = self.exchange.next_event(0.0)
        assert event is None or isinstance(event, Arrived)
        return event.reply if event is not None else None

    def sealed(
        self,
        reply: Reply,
        bulk: Iterable[bytes] = (),
        site: SiteName = EAST,
        by: SiteName | None = None,
        to: EnclaveKeys | None = None,
        **context: Any,
    ) -> Reply:
        """A reply as its site's gate lets it out; ``bulk`` is what its blobs that are not inline hold."""
        secret = os.urandom(32)
        place = {"study": STUDY.digest(), "run": RUN, "message": reply.message_id, "site": site} | context
        where = reply_context(place["study"], place["run"], place["message"], place["site"])
        head = seal(sealed_to_bytes(reply, secret), (to or self.keys).identity, where, SIGNING[by or site])
        blobs = [
            self.outside.keep(b"".join(seal_chunks([piece], blob_key(secret, number))))
            for number, piece in enumerate(bulk)
        ]
        first = Blob.of(head) if len(head) < 90_000 else self.outside.keep(head)
        return Reply(reply.message_id, blobs=(first, *blobs))


@pytest.fixture
def enclave() -> Enclave:
    return Enclave()


def named(content: bytes) -> Blob:
    return Blob(blob_id(content), len(content))


def read(enclave: Enclave, blob: Blob) -> bytes:
    with enclave.exchange.open(blob) as file:
        return file.read()


# --- what goes out ---


def test_what_is_asked_is_signed(enclave: Enclave) -> None:
    asked = enclave.ask()
    assert enclave.keys.identity.has_signed(asked.signed_part, asked.signature)
    assert not EnclaveKeys().identity.has_signed(asked.signed_part, asked.signature)


# --- what comes in ---


def test_a_sealed_reply_reaches_the_loop_with_its_bulk_data(enclave: Enclave) -> None:
    update = os.urandom(2 * CHUNK_BYTES + 5)
    reply = Reply(enclave.ask().message_id, body=b"counts", blobs=(named(update), Blob.of(b"little")))
    heard = enclave.hear(enclave.sealed(reply, [update]))
    assert heard is not None
    assert (heard.body, heard.code) == (b"counts", "")
    assert [read(enclave, blob) for blob in heard.blobs] == [update, b"little"]
    assert update not in enclave.outside.stored.values()


def test_a_sealed_refusal_reaches_the_loop_and_counts_as_one(enclave: Enclave) -> None:
    asked = enclave.ask()
    reply = Reply(asked.message_id, code="data_changed", alleged="west")
    assert enclave.hear(enclave.sealed(reply)) == reply
    assert enclave.outside.refused == {asked.message_id: "data_changed"}


def test_that_a_site_does_not_trust_the_machine_may_be_said_in_the_open(enclave: Enclave) -> None:
    asked = enclave.ask()
    said = Reply(asked.message_id, code="attestation_measurement", body=b"more", alleged="west")
    assert enclave.hear(said) == Reply(asked.message_id, code="attestation_measurement")


WRONG: dict[str, Any] = {
    "in the open": lambda e, r: r,
    "a code in the open": lambda e, r: replace(r, code="data_changed"),
    "garbage": lambda e, r: Reply(r.message_id, blobs=(Blob.of(b"garbage" * 40),)),
    "nothing": lambda e, r: Reply(r.message_id, blobs=(Blob.of(b""),)),
    "to another machine": lambda e, r: e.sealed(r, to=EnclaveKeys()),
    "for another run": lambda e, r: e.sealed(r, run="malignancy-other"),
    "for another study": lambda e, r: e.sealed(r, study=bytes(32)),
    "to another message": lambda e, r: e.sealed(r, message=bytes(32)),
    "by another site's place": lambda e, r: e.sealed(r, site=WEST),
    "holding another message": lambda e, r: Reply(
        r.message_id, blobs=e.sealed(Reply(MessageId(bytes(32))), message=r.message_id).blobs
    ),
    "bulk data that is not listed": lambda e, r: e.sealed(r, [b"x"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_open_is_asked_for_again_and_then_refused(enclave: Enclave, wrong: str) -> None:
    asked = enclave.ask()
    reply = WRONG[wrong](enclave, Reply(asked.message_id, body=b"counts"))
    for number in range(MOST_REPETITIONS):
        assert enclave.hear(reply) is None
        assert enclave.outside.forgotten == [asked.message_id] * (number + 1)
        assert enclave.outside.sent[-1] == (EAST, asked)
    assert enclave.hear(reply) == Reply(asked.message_id, code="attestation_unseal")
    assert enclave.outside.refused == {asked.message_id: "attestation_unseal"}
    assert enclave.hear(reply) is None, "it is not asked any more"


def test_what_another_site_sealed_is_refused_at_once(enclave: Enclave) -> None:
    asked = enclave.ask()
    reply = enclave.sealed(Reply(asked.message_id, body=b"counts"), by=WEST)
    assert enclave.hear(reply) == Reply(asked.message_id, code="attestation_site_signature")
    assert enclave.outside.forgotten == []


def test_what_opens_after_it_was_asked_for_again_counts(enclave: Enclave) -> None:
    reply = Reply(enclave.ask().message_id, body=b"counts")
    assert enclave.hear(enclave.sealed(reply, to=EnclaveKeys())) is None
    assert enclave.hear(enclave.sealed(reply)) == reply


def test_nothing_is_heard_that_was_not_asked_or_was_withdrawn_or_was_heard(enclave: Enclave) -> None:
    reply = Reply(message_id(RUN, 1, Phase.UPLOAD, 0, EAST), body=b"counts")
    assert enclave.hear(enclave.sealed(reply)) is None
    enclave.ask()
    enclave.exchange.withdraw([reply.message_id])
    assert enclave.hear(enclave.sealed(reply)) is None
    enclave.ask()
    assert enclave.hear(enclave.sealed(reply)) == reply
    assert enclave.hear(enclave.sealed(reply)) is None


def test_the_server_cannot_say_who_answered(enclave: Enclave) -> None:
    reply = Reply(enclave.ask().message_id, body=b"counts")
    enclave.outside.arriving.append(Arrived(WEST, enclave.sealed(reply)))
    assert enclave.exchange.next_event(0.0) == Arrived(EAST, reply)


# --- bulk data ---


def test_bulk_data_that_was_changed_at_the_server_does_not_open(enclave: Enclave) -> None:
    update = os.urandom(1000)
    sealed = enclave.sealed(Reply(enclave.ask().message_id, blobs=(named(update),)), [update])
    heard = enclave.hear(sealed)
    assert heard is not None
    content = bytearray(enclave.outside.stored[sealed.blobs[1].id])
    content[7] ^= 1
    enclave.outside.stored[sealed.blobs[1].id] = bytes(content)
    with pytest.raises(QuorateError):
        read(enclave, heard.blobs[0])


def test_a_site_cannot_put_its_bulk_data_in_the_place_of_what_the_machine_stored(enclave: Enclave) -> None:
    stored = enclave.exchange.put([b"the sum"])
    mine = b"another"
    listed = Blob(stored.id, len(mine))
    assert enclave.hear(enclave.sealed(Reply(enclave.ask().message_id, blobs=(listed,)), [mine])) is not None
    assert read(enclave, stored) == b"the sum"


def test_two_sites_that_name_the_same_bulk_data_each_keep_their_own(enclave: Enclave) -> None:
    first = enclave.hear(enclave.sealed(Reply(enclave.ask().message_id, blobs=(named(b"one"),)), [b"one"]))
    liar = Reply(enclave.ask(WEST).message_id, blobs=(named(b"one"),))
    second = enclave.hear(enclave.sealed(liar, [b"two"], site=WEST), WEST)
    assert first is not None
    assert second is not None
    assert (read(enclave, first.blobs[0]), read(enclave, second.blobs[0])) == (b"one", b"two")


@pytest.mark.parametrize("phase", [Phase.CHECKPOINT, Phase.RELEASE])
def test_what_sites_sealed_to_each_other_leaves_the_machine_as_it_was(enclave: Enclave, phase: Phase) -> None:
    state = os.urandom(3000)
    heard = enclave.hear(enclave.sealed(Reply(enclave.ask(phase=phase).message_id, blobs=(named(state),)), [state]))
    assert heard is not None
    assert heard.blobs == (named(state),)
    assert enclave.outside.stored[heard.blobs[0].id] == state


def test_a_checkpoint_that_is_not_what_it_is_named_is_refused(enclave: Enclave) -> None:
    reply = Reply(enclave.ask(phase=Phase.CHECKPOINT).message_id, blobs=(Blob(blob_id(b"other"), 5),))
    heard = None
    for _ in range(MOST_REPETITIONS + 1):
        heard = enclave.hear(enclave.sealed(reply, [b"state"]))
    assert heard is not None
    assert heard.code == "attestation_unseal"


@pytest.mark.parametrize("size", [10_000_000, MAX_BLOB_BYTES])
def test_a_head_that_is_larger_than_any_is_not_read(enclave: Enclave, size: int) -> None:
    asked = enclave.ask()
    huge = Blob(BlobId(bytes(32)), size)
    enclave.outside.stored[huge.id] = bytes(100)
    for _ in range(MOST_REPETITIONS + 1):
        heard = enclave.hear(Reply(asked.message_id, blobs=(huge,)))
    assert heard == Reply(asked.message_id, code="attestation_unseal")
    assert enclave.outside.most_read == 0


def test_when_a_step_is_committed_what_came_for_it_goes(enclave: Enclave) -> None:
    update = os.urandom(100_000)
    good = enclave.sealed(Reply(enclave.ask().message_id, body=bytes(200_000), blobs=(named(update),)), [update])
    heard = enclave.hear(good)
    assert heard is not None
    enclave.exchange.commit(StudyProgress(), None, set())
    assert enclave.outside.removed == {good.blobs[0].id}, "the update may be read until the loop says otherwise"
    enclave.exchange.commit(StudyProgress(), None, {blob.id for blob in heard.blobs})
    assert enclave.outside.removed == {blob.id for blob in good.blobs}


def test_what_came_with_a_refused_reply_goes_too(enclave: Enclave) -> None:
    reply = enclave.sealed(Reply(enclave.ask().message_id, blobs=(named(b"one"),)), [b"one"], by=WEST)
    enclave.hear(reply)
    enclave.exchange.commit(StudyProgress(), None, set())
    assert enclave.outside.removed == {reply.blobs[1].id}


def test_a_full_disk_at_the_server_is_no_site_s_fault(enclave: Enclave) -> None:
    reply = Reply(enclave.ask(phase=Phase.CHECKPOINT).message_id, blobs=(named(b"state"),))
    sealed = enclave.sealed(reply, [b"state"])
    enclave.outside.full = True
    with pytest.raises(DiskFullError):
        enclave.hear(sealed)
    assert enclave.outside.refused == {}


def test_what_the_server_has_no_more_is_asked_for_again(enclave: Enclave) -> None:
    asked = enclave.ask(phase=Phase.CHECKPOINT)
    sealed = enclave.sealed(Reply(asked.message_id, blobs=(named(b"state"),)), [b"state"])
    enclave.outside.stored.clear()
    assert enclave.hear(sealed) is None
    assert enclave.outside.forgotten == [asked.message_id]


def test_presence_passes_as_it_is(enclave: Enclave) -> None:
    event = Presence({EAST: 3.0})
    enclave.outside.arriving.append(event)
    assert enclave.exchange.next_event(0.0) == event
    assert enclave.exchange.next_event(0.0) is None
