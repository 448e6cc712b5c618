"""The gate: what passes between a site and the server in a study that demands an attested machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.appraisal import Appraisal
from quorate.attestation.appraise import appraise
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence
from quorate.attestation.sealing import blob_key, reply_context
from quorate.errors import (
    AttestationError,
    BindingMismatchError,
    ConfigError,
    PolicyError,
    QuorateError,
    ServerUnreachableError,
)
from quorate.identity import RunId, SiteName
from quorate.process.chunked_aead import open_chunks
from quorate.rounds.blobs import INLINE_BYTES, Blob
from quorate.rounds.instruction import Instruction, MessageId, Phase, Reply, message_id
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.v1 import attestation_pb2
from quorate.wire.attestation_messages import sealed_from_bytes
from quorate_client.connection.current import Connection, CurrentConnection
from quorate_client.connection.gate import FRESH_S, Appraised, Gate, GateParts
from tests.attested_machine import ATTESTER, DOOR, NOW, SIGNING, Machine, attested_study, demanding
from tests.patience import PATIENCE_S
from tests.server.study_kit import RUN, a_study

SITE = SiteName("east")
STUDY = attested_study()
OPEN = a_study()
"""Another approved study, which demands nothing."""


@dataclass
class Stub:
    """The server's end of ``Attest``: passes the question on to the machine that is there, or does as a test says."""

    machine: Machine
    failures: list[QuorateError] = field(default_factory=list)
    tamper: Callable[[attestation_pb2.AttestReply], attestation_pb2.AttestReply] = lambda reply: reply
    hold: asyncio.Event | None = None

    async def Attest(self, request: attestation_pb2.AttestRequest, timeout: float) -> Any:  # noqa: N802
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            raise self.failures.pop(0)
        return self.tamper(self.machine.answer(request.nonce))


class Site:
    """A gate and all that is around it."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.studies = {study.digest(): study for study in (STUDY, OPEN)}
        self.rules: object = "as they are"
        self.notes: list[Appraised] = []
        self.owed: set[MessageId] = set()
        self.door = DOOR
        self.refusal: QuorateError | None = None
        self.current = CurrentConnection()
        self.spool = Spool(folder)
        self.stub = Stub(Machine())
        self.gate = self.started()
        self.connect()

    def started(self) -> Gate:
        """One life of the daemon."""
        parts = GateParts(
            site=SITE,
            study=self.studies.get,
            appraise=self._appraise,
            rules=lambda: self.rules,
            door_key=lambda: self.door,
            signing_key=lambda: SIGNING[SITE],
            note=self.notes.append,
            owed=lambda: self.owed,
            now=lambda: self.now,
            random=lambda: 0.0,
        )
        return Gate(parts, self.current, self.spool)

    def connect(self) -> None:
        self.current.use(Connection(None, self.stub, None, "the server"))  # type: ignore[arg-type]

    def _appraise(self, study: Study, evidence: Evidence, expected: Expected, now: datetime) -> Appraisal:
        if self.refusal is not None:
            raise self.refusal
        assert study.attestation is not None
        return appraise(evidence, expected, study.attestation.policy, now)

    @property
    def machine(self) -> Machine:
        return self.stub.machine

    def restart_machine(self, **changes: Any) -> Machine:
        self.stub.machine = Machine(**changes)
        return self.machine

    def asked(self, by: Machine | None = None, study: Study = STUDY, **changes: Any) -> Instruction:
        """An instruction that the machine signed."""
        phase, number = changes.pop("phase", Phase.UPLOAD), changes.pop("round_number", 1)
        plain = Instruction(
            message_id(RUN, number, phase, 0, SITE), RUN, number, phase, 0, study.digest(), 60.0, b"work", **changes
        )
        return replace(plain, signature=(by or self.machine).keys.sign(plain.signed_part))

    async def leaves(self, reply: Reply, study: Study = STUDY) -> Reply:
        self.owed.add(reply.message_id)
        return await self.gate.outgoing(RUN, study.digest(), reply)

    def opened(self, reply: Reply, by: Machine | None = None) -> tuple[Reply, list[bytes]]:
        """What the machine makes of it."""
        head, *bulk = reply.blobs
        context = reply_context(STUDY.digest(), RUN, reply.message_id, SITE)
        content = (by or self.machine).keys.open(
            self.spool.content(head), context, SIGNING[SITE].public_key().public_bytes_raw()
        )
        said, secret = sealed_from_bytes(content)
        pieces = [
            b"".join(open_chunks([self.spool.content(blob)], blob_key(secret, number)))
            for number, blob in enumerate(bulk)
        ]
        return said, pieces

    @property
    def files(self) -> int:
        return len(list(self.spool.folder.iterdir()))


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def answer_to(asked: Instruction, **changes: Any) -> Reply:
    return Reply(asked.message_id, **changes)


# --- instructions ---


async def test_what_the_appraised_machine_signed_is_worked_on_and_it_is_appraised_once(site: Site) -> None:
    assert await site.gate.admits(site.asked())
    assert await site.gate.admits(site.asked(round_number=2))
    assert site.machine.asked == 1
    assert [note.code for note in site.notes] == [""]


async def test_a_study_that_demands_no_machine_goes_through_as_before(site: Site) -> None:
    asked = replace(site.asked(study=OPEN), signature=b"")
    assert await site.gate.admits(asked)
    reply = answer_to(asked, body=b"open")
    assert await site.leaves(reply, OPEN) is reply
    assert site.machine.asked == 0


@pytest.mark.parametrize(
    "change",
    [
        {"body": b"other work"},
        {"deadline_s": 1.0},
        {"blobs": (Blob.of(b"another"),)},
        {"signature": b""},
        {"signature": bytes(64)},
        {"phase": Phase.RELEASE},
        {"round_number": 2},
        {"attempt": 1},
        {"run": RunId("malignancy-other")},
        {"message_id": message_id(RUN, 1, Phase.UPLOAD, 1, SITE)},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_an_instruction_that_was_changed_on_the_way_is_passed_over(site: Site, change: dict[str, Any]) -> None:
    asked = site.asked(blobs=(Blob.of(b"one"),))
    assert await site.gate.admits(asked)
    changed = replace(asked, **change)
    site.restart_machine(run=changed.run, keys=site.machine.keys)  # it answers for whatever run it is asked for
    assert not await site.gate.admits(changed)


async def test_an_instruction_to_another_site_is_passed_over(site: Site) -> None:
    name = message_id(RUN, 1, Phase.UPLOAD, 0, SiteName("west"))
    plain = replace(site.asked(), message_id=name)
    assert not await site.gate.admits(replace(plain, signature=site.machine.keys.sign(plain.signed_part)))


async def test_a_machine_that_was_started_again_is_appraised_before_its_word_counts(site: Site) -> None:
    assert await site.gate.admits(site.asked())
    after = site.restart_machine()
    assert await site.gate.admits(site.asked())
    assert after.asked == 1


async def test_the_word_of_a_machine_that_is_gone_counts_no_more(site: Site) -> None:
    old = site.asked()
    assert await site.gate.admits(old)
    site.restart_machine()
    assert await site.gate.admits(site.asked())
    assert not await site.gate.admits(old)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"study": attested_study(purpose="Another")}, "attestation_binding"),
        ({"run": RunId("malignancy-other")}, "attestation_binding"),
        ({"door": b"another door"}, "attestation_binding"),
        ({"attester": Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)}, "attestation_key_unknown"),
        ({"now": NOW - timedelta(hours=1)}, "attestation_stale"),
    ],
    ids=["study", "run", "door", "attester", "age"],
)
async def test_evidence_of_something_else_is_refused(site: Site, wrong: dict[str, Any], code: str) -> None:
    site.restart_machine(**wrong)
    with pytest.raises(AttestationError) as refused:
        await site.gate.admits(site.asked())
    assert refused.value.code == code
    assert (await site.leaves(answer_to(site.asked(), body=b"secret"))) == answer_to(site.asked(), code=code)
    assert {note.code for note in site.notes} == {code}


async def test_the_same_evidence_a_second_time_is_refused(site: Site) -> None:
    kept: list[attestation_pb2.AttestReply] = []

    def replay(reply: attestation_pb2.AttestReply) -> attestation_pb2.AttestReply:
        kept.append(reply)
        return kept[0]

    site.stub.tamper = replay
    assert await site.gate.admits(site.asked())
    site.now += timedelta(seconds=FRESH_S)
    with pytest.raises(BindingMismatchError):
        await site.gate.admits(site.asked())


async def test_keys_that_evidence_is_not_bound_to_are_refused(site: Site) -> None:
    thief = Machine()

    def exchanged(reply: attestation_pb2.AttestReply) -> attestation_pb2.AttestReply:
        reply.sealing_key = thief.keys.identity.sealing
        return reply

    site.stub.tamper = exchanged
    with pytest.raises(BindingMismatchError):
        await site.gate.admits(site.asked())


async def test_a_server_that_shows_no_evidence_now_is_asked_until_it_does(site: Site) -> None:
    site.stub.failures = [AttestationError("The run does not go on now"), ServerUnreachableError("Gone")]
    async with asyncio.timeout(PATIENCE_S):
        assert await site.gate.admits(site.asked())
    assert site.notes[-1].code == ""


async def test_while_one_run_is_asked_for_another_goes_on(site: Site) -> None:
    site.stub.hold = asyncio.Event()
    slow = asyncio.create_task(site.gate.admits(site.asked()))
    await asyncio.sleep(0)
    assert await site.gate.admits(replace(site.asked(study=OPEN), run=RunId("malignancy-other")))
    site.stub.hold.set()
    assert await slow


# --- replies ---


async def test_a_reply_leaves_sealed_with_its_bulk_data_and_its_code(site: Site) -> None:
    bulk = [site.spool.put([bytes([place]) * 300_000]) for place in (1, 2)]
    reply = answer_to(site.asked(), body=b"counts", blobs=(bulk[0], Blob.of(b"little"), bulk[1]), working_s=2.0)
    left = await site.leaves(reply)
    assert (left.code, left.body, left.working_s, left.alleged) == ("", b"", 0.0, "")
    assert site.opened(left) == (reply, [site.spool.content(blob) for blob in bulk])

    refusal = answer_to(site.asked(round_number=2), code="data_changed", alleged="west")
    left = await site.leaves(refusal)
    assert (left.code, left.alleged) == ("", "")
    assert site.opened(left) == (refusal, [])


async def test_nothing_else_than_the_code_of_a_refused_appraisal_leaves_in_the_open(site: Site) -> None:
    reply = answer_to(site.asked(), code="attestation_kind", body=b"secret", working_s=3.0, alleged="west")
    assert await site.leaves(reply) == answer_to(site.asked(), code="attestation_kind")


async def test_a_large_reply_leaves_sealed_too(site: Site) -> None:
    reply = answer_to(site.asked(), body=bytes(2 * INLINE_BYTES))
    left = await site.leaves(reply)
    assert left.blobs[0].inline is None
    assert site.opened(left) == (reply, [])


async def test_a_reply_is_sealed_anew_to_a_machine_that_was_started_again_and_its_bulk_data_is_not(site: Site) -> None:
    bulk = site.spool.put([b"update" * 100_000])
    reply = answer_to(site.asked(), blobs=(bulk,))
    before = await site.leaves(reply)
    site.restart_machine()
    assert await site.gate.admits(site.asked())
    after = await site.leaves(reply)
    assert site.opened(after)[0] == reply
    assert before.blobs[0] != after.blobs[0]
    assert before.blobs[1] == after.blobs[1], "what the server has of it need not be brought again"


async def test_bulk_data_is_sealed_alike_after_a_restart_of_the_site(site: Site) -> None:
    reply = answer_to(site.asked(), blobs=(site.spool.put([b"update" * 100_000]),))
    before = await site.leaves(reply)
    site.gate = site.started()
    assert (await site.leaves(reply)).blobs[1] == before.blobs[1]


async def test_no_two_replies_are_sealed_under_one_key(site: Site) -> None:
    bulk = site.spool.put([b"update" * 100_000])
    first = await site.leaves(answer_to(site.asked(), blobs=(bulk,)))
    second = await site.leaves(answer_to(site.asked(round_number=2), blobs=(bulk,)))
    third = await site.leaves(answer_to(site.asked(round_number=2), body=b"other", blobs=(bulk,)))
    assert len({reply.blobs[1].id for reply in (first, second, third)}) == 3


async def test_a_reply_that_took_the_place_of_another_leaves_and_not_the_other(site: Site) -> None:
    first = answer_to(site.asked(), blobs=(site.spool.put([b"update" * 100_000]),))
    await site.leaves(first)
    refusal = answer_to(site.asked(), code="blob_missing")
    assert site.opened(await site.leaves(refusal)) == (refusal, [])


async def test_a_settled_reply_leaves_nothing_sealed_on_the_disk(site: Site) -> None:
    bulk = site.spool.put([b"update" * 100_000])
    before = site.files
    reply = answer_to(site.asked(), body=bytes(2 * INLINE_BYTES), blobs=(bulk,))
    await site.leaves(reply)
    site.restart_machine()
    assert await site.gate.admits(site.asked())
    await site.leaves(reply)
    assert site.files > before
    site.gate.settled(reply.message_id)
    assert site.files == before
    assert site.spool.has(bulk)


async def test_what_nobody_waits_for_any_more_leaves_nothing_sealed_on_the_disk(site: Site) -> None:
    old = answer_to(site.asked(), blobs=(site.spool.put([b"update" * 100_000]),))
    before = site.files
    await site.leaves(old)
    site.owed.clear()
    await site.leaves(answer_to(site.asked(round_number=2)))
    assert site.files == before


async def test_a_reply_is_withheld_while_the_machine_cannot_be_asked(site: Site) -> None:
    site.stub.failures = [ServerUnreachableError("Gone")]
    with pytest.raises(ServerUnreachableError):
        await site.leaves(answer_to(site.asked(), body=b"secret"))
    assert site.files == 0


@pytest.mark.parametrize("broken", [ConfigError("policy.toml is gone"), PolicyError("It cannot be read")])
async def test_a_policy_that_cannot_be_read_lets_nothing_through(site: Site, broken: QuorateError) -> None:
    site.refusal = broken
    with pytest.raises(type(broken)):
        await site.leaves(answer_to(site.asked(), body=b"secret"))


async def test_a_reply_for_a_study_that_this_site_never_saw_has_nothing_but_a_code(site: Site) -> None:
    unknown = attested_study(purpose="Never shown")
    asked = site.asked(study=unknown)
    assert await site.leaves(answer_to(asked, code="study_not_approved", body=b"x"), unknown) == answer_to(
        asked, code="study_not_approved"
    )
    assert (await site.leaves(answer_to(asked, body=b"x"), unknown)).code == "site_interrupted"


# --- how long an appraisal counts ---


@pytest.mark.parametrize("later_s", [FRESH_S, -1.0], ids=["too old", "clock set back"])
async def test_an_appraisal_counts_for_a_while_only(site: Site, later_s: float) -> None:
    assert await site.gate.admits(site.asked())
    site.now += timedelta(seconds=later_s)
    site.machine.now = site.now
    await site.leaves(answer_to(site.asked()))
    assert site.machine.asked == 2


async def test_an_appraisal_counts_on_the_connection_on_which_it_was_made(site: Site) -> None:
    assert await site.gate.admits(site.asked())
    site.connect()
    await site.leaves(answer_to(site.asked()))
    assert site.machine.asked == 2


async def test_an_appraisal_by_rules_that_have_changed_counts_no_more(site: Site) -> None:
    assert await site.gate.admits(site.asked())
    site.rules = "others"
    site.refusal = AttestationError("Not by these")
    assert (await site.leaves(answer_to(site.asked(), body=b"secret"))).code == "not_attested"


async def test_one_machine_is_not_trusted_for_another_study_of_the_same_run(site: Site) -> None:
    other = attested_study(purpose="Another", attestation=demanding(ATTESTER))
    site.studies[other.digest()] = other
    assert await site.gate.admits(site.asked())
    with pytest.raises(BindingMismatchError):
        await site.gate.admits(site.asked(study=other))


async def test_runs_that_a_server_makes_up_do_not_fill_the_memory(site: Site) -> None:
    for number in range(300):
        run = RunId(f"malignancy-{number:06}")
        site.restart_machine(run=run)
        plain = replace(site.asked(), run=run, message_id=message_id(run, 1, Phase.UPLOAD, 0, SITE))
        assert await site.gate.admits(replace(plain, signature=site.machine.keys.sign(plain.signed_part)))
    assert len(site.gate._trusted) <= 256
    assert len(site.gate._asking) <= 1
