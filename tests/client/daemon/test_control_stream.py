"""The connection of a site's daemon, against a real server over mutual TLS."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from quorate.errors import (
    BlobMissingError,
    CertificateRevokedError,
    ContributionError,
    IdentityClonedError,
    InputError,
    QuorateError,
    SupersededError,
    WrongStateError,
)
from quorate.identity import RunId
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate.study.study import Rounds
from quorate.v1 import rounds_pb2
from quorate.wire.messages import instruction_to_proto, reply_from_proto
from quorate.wire.refusal import detail_of
from quorate_client.connection.backoff import LONGEST_S
from quorate_client.site.folder import SiteFolder
from tests.patience import PATIENCE_S

from ..conftest import RUN, SITE, RunningSite, ScriptedEngine, add_others, approve, enrol, instruct, live, make_study
from ..consortium import Authority, RunningServer, Visit, start_server


def snapshot(folder: SiteFolder, to: Path) -> SiteFolder:
    """What is on the disk at this moment: all that a site which is killed now comes back with."""
    shutil.copytree(folder.root, to)
    return SiteFolder(to)


class Gate:
    """Work that goes on when the test lets it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.stopped = False

    async def perform(self, instruction: Instruction, *_: object) -> Reply:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        return Reply(instruction.message_id, body=b"done")


async def overtaken(visit: Visit, instruction: Instruction) -> None:
    """Wait until the site has looked at everything that was sent before: it answers this one at once."""
    proto = instruction_to_proto(instruction)
    proto.phase = "prune"
    visit.send(instruction=proto)
    assert (await visit.next("reply")).code == "bad_frame"


async def test_a_site_does_what_it_is_told_and_answers(server: RunningServer, visit: Visit) -> None:
    instruction = instruct(server.services)
    visit.instruct(instruction)

    reply = reply_from_proto(await visit.next("reply"))

    assert (reply.message_id, reply.code, reply.body) == (instruction.message_id, "", b"cba")


async def test_an_acknowledged_success_is_counted(server: RunningServer, site: RunningSite, visit: Visit) -> None:
    instruction = instruct(server.services)
    visit.instruct(instruction)
    await visit.next("reply")
    visit.acknowledge(instruction.message_id)
    visit.instruct(instruct(server.services, 2))
    await visit.next("reply")

    assert site.metric("quorate_client_instructions_done_total", phase="guest") == 2
    assert (site.metric("quorate_client_last_success_timestamp_seconds") or 0) > 0
    assert [entry.round_number for entry in site.daemon.journal.owed()] == [2]


# --- at most once, and never lost ---


async def test_a_reply_that_was_sent_is_on_disk_and_sent_again_after_a_kill(
    server: RunningServer, site: RunningSite, visit: Visit, folder: SiteFolder, tmp_path: Path
) -> None:
    visit.instruct(instruct(server.services))
    sent = await visit.next("reply")
    killed = snapshot(folder, tmp_path / "killed")
    await site.stop()

    engine = ScriptedEngine()
    async with live(killed, engine):
        again = await (await server.services.visit()).next("reply")

    assert again == sent
    assert engine.performed == []


async def test_a_site_that_was_killed_at_work_says_so_and_does_not_work_again(
    server: RunningServer, site: RunningSite, engine: ScriptedEngine, visit: Visit, folder: SiteFolder, tmp_path: Path
) -> None:
    gate = Gate()
    engine.perform_next.append(gate.perform)
    instruction = instruct(server.services)
    visit.instruct(instruction)
    await gate.begun.wait()
    killed = snapshot(folder, tmp_path / "killed")
    await site.stop()

    second = ScriptedEngine()
    async with live(killed, second):
        next_visit = await server.services.visit()
        first = reply_from_proto(await next_visit.next("reply"))
        next_visit.instruct(instruction)
        repeated = reply_from_proto(await next_visit.next("reply"))

    assert first == repeated == Reply(instruction.message_id, "site_interrupted")
    assert second.performed == []


async def test_an_instruction_that_is_repeated_during_the_work_is_passed_over(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    gate = Gate()
    engine.perform_next.append(gate.perform)
    instruction = instruct(server.services)
    visit.instruct(instruction)
    await gate.begun.wait()
    visit.instruct(instruction)
    await overtaken(visit, instruct(server.services, 99))
    gate.may_end.set()

    assert reply_from_proto(await visit.next("reply")).body == b"done"
    assert engine.performed == [instruction.message_id]


async def test_a_repeated_instruction_gets_the_stored_reply_even_after_it_was_acknowledged(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    instruction = instruct(server.services)
    visit.instruct(instruction)
    first = await visit.next("reply")
    visit.acknowledge(instruction.message_id)
    visit.instruct(instruction)

    assert await visit.next("reply") == first
    assert engine.performed == [instruction.message_id]


async def test_an_acknowledged_reply_is_not_sent_again_at_the_next_connection(
    server: RunningServer, visit: Visit
) -> None:
    first, second = instruct(server.services, 1), instruct(server.services, 2)
    visit.instruct(first)
    await visit.next("reply")
    visit.acknowledge(first.message_id)
    visit.instruct(second)
    await visit.next("reply")
    visit.hang_up()

    next_visit = await server.services.visit()

    assert (await next_visit.next("reply")).message_id == second.message_id


async def test_a_reply_whose_bulk_data_the_server_lost_is_delivered_again(server: RunningServer, visit: Visit) -> None:
    instruction = instruct(server.services)
    visit.instruct(instruction)
    first = await visit.next("reply")
    reason = detail_of(BlobMissingError("A reply refers to bulk data that was not uploaded"))
    visit.send(refused_reply=rounds_pb2.RefusedReply(message_id=instruction.message_id, reason=reason))

    assert await visit.next("reply") == first


async def test_a_reply_that_the_server_cannot_use_is_let_go(
    server: RunningServer, site: RunningSite, visit: Visit
) -> None:
    instruction = instruct(server.services)
    visit.instruct(instruction)
    await visit.next("reply")
    reason = detail_of(ContributionError("The contribution has another form"))
    visit.send(refused_reply=rounds_pb2.RefusedReply(message_id=instruction.message_id, reason=reason))
    visit.instruct(instruct(server.services, 2))
    await visit.next("reply")

    assert [entry.round_number for entry in site.daemon.journal.owed()] == [2]


# --- the connection ---


async def test_a_site_comes_back_under_a_higher_number_when_the_line_breaks(
    server: RunningServer, visit: Visit
) -> None:
    visit.hang_up()

    again = await server.services.visit()

    assert again.hello.session > visit.hello.session


async def test_a_site_finds_a_server_that_was_restarted_within_seconds(
    server: RunningServer, site: RunningSite, visit: Visit
) -> None:
    await server.stop()
    begun = time.monotonic()
    restarted = await start_server(server.services, server.port)
    try:
        await (await server.services.visit()).next("heartbeat")
        assert time.monotonic() - begun < LONGEST_S
        assert site.metric("quorate_client_connections_total") == 2
    finally:
        await restarted.stop()


async def test_a_site_leaves_a_server_that_has_fallen_silent(server: RunningServer, visit: Visit) -> None:
    server.services.beats = False

    again = await server.services.visit()

    assert again.hello.session > visit.hello.session


async def test_work_goes_on_while_the_connection_is_lost(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    gate = Gate()
    engine.perform_next.append(gate.perform)
    visit.instruct(instruct(server.services))
    await gate.begun.wait()
    visit.hang_up()
    again = await server.services.visit()
    gate.may_end.set()

    assert reply_from_proto(await again.next("reply")).body == b"done"


async def test_heartbeats_are_sent_as_often_as_the_server_asks(visit: Visit) -> None:
    first, second = await visit.next("heartbeat"), await visit.next("heartbeat")

    assert second.sequence == first.sequence + 1
    assert not first.paused


@pytest.mark.parametrize("error", [SupersededError, IdentityClonedError, CertificateRevokedError])
async def test_a_site_whose_identity_must_not_go_on_stops_and_does_not_come_back(
    server: RunningServer, site: RunningSite, visit: Visit, error: type[QuorateError]
) -> None:
    visit.refuse(error("The server says no", action="Ask the operator"))

    with pytest.raises(error, match="Ask the operator"):
        async with asyncio.timeout(PATIENCE_S):
            await site.running

    report = site.state.connection
    assert report is not None
    assert (report.state, report.code) == ("stopped", error.code)
    assert server.services.visits.empty()


async def test_a_copy_of_a_site_is_told_so_at_its_first_word(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address)
    server.services.faults.welcome_refused = IdentityClonedError("Two daemons use one identity")
    async with live(folder, engine) as copy:
        with pytest.raises(IdentityClonedError):
            async with asyncio.timeout(PATIENCE_S):
                await copy.running


async def test_a_site_comes_back_after_any_other_refusal(server: RunningServer, visit: Visit) -> None:
    visit.refuse(WrongStateError("The server is being restored"))

    assert (await server.services.visit()).hello.session > visit.hello.session


async def test_a_server_with_a_foreign_certificate_gets_nothing(
    authority: Authority, server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    impostor = await start_server(server.services, issuer=Authority("testers"))
    enrol(folder, server.services, impostor.address)
    try:
        async with live(folder, engine) as site:
            assert (await site.state.until("waiting")).code == "server_identity"
            assert server.services.visits.empty()
    finally:
        await impostor.stop()


async def test_a_site_that_stops_answers_what_it_interrupts_and_says_goodbye(
    server: RunningServer, site: RunningSite, engine: ScriptedEngine, visit: Visit
) -> None:
    gate = Gate()
    engine.perform_next.append(gate.perform)
    visit.instruct(instruct(server.services))
    await gate.begun.wait()

    await site.stop()

    assert (await visit.next("reply")).code == "site_interrupted"
    assert (await visit.next("goodbye")).reason == "stopping"
    report = site.state.connection
    assert report is not None
    assert report.state == "stopped"


async def test_a_site_that_stops_while_no_server_is_there_ends_at_once(
    server: RunningServer, site: RunningSite, visit: Visit
) -> None:
    await server.stop()

    await site.stop()

    assert site.running.done()


async def test_a_clock_that_is_days_off_is_reported_and_refuses_nothing(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address)
    async with live(folder, engine, wall=lambda: time.time() - 2 * 86_400) as site:
        await (await server.services.visit()).next("heartbeat")
        report = site.state.connection
        assert report is not None
        assert report.state == "connected"
        assert report.clock_offset_s == pytest.approx(2 * 86_400, abs=5)
        assert site.metric("quorate_client_clock_offset_seconds") == pytest.approx(2 * 86_400, abs=5)


async def test_an_instruction_that_this_version_does_not_know_is_answered_with_a_code(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    proto = instruction_to_proto(instruct(server.services))
    proto.phase = "prune"
    visit.send(instruction=proto)

    assert (await visit.next("reply")).code == "bad_frame"
    assert engine.performed == []


async def test_an_event_that_this_version_does_not_know_is_passed_over(server: RunningServer, visit: Visit) -> None:
    visit.send()
    visit.send(studies_changed=rounds_pb2.StudiesChanged())
    visit.instruct(instruct(server.services))

    assert (await visit.next("reply")).code == ""


# --- what the site decides ---


async def test_a_withdrawn_instruction_is_stopped_and_not_answered(
    server: RunningServer, engine: ScriptedEngine, visit: Visit, site: RunningSite
) -> None:
    gate = Gate()
    engine.perform_next.append(gate.perform)
    first, second = instruct(server.services, 1), instruct(server.services, 2)
    visit.instruct(first)
    await gate.begun.wait()
    visit.send(withdraw=rounds_pb2.Withdraw(message_id=first.message_id))
    visit.instruct(second)

    assert (await visit.next("reply")).message_id == second.message_id
    assert gate.stopped
    assert [entry.round_number for entry in site.daemon.journal.owed()] == [2]


async def test_instructions_of_one_run_are_done_one_after_the_other_and_runs_beside_each_other(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    slow = Gate()
    engine.perform_next.append(slow.perform)
    first, queued = instruct(server.services, 1), instruct(server.services, 2)
    other_run = instruct(
        server.services, run="run-2", message_id=message_id(RUN, 9, Phase.GUEST, 0, SITE, salt=b"other run")
    )
    visit.instruct(first)
    await slow.begun.wait()
    visit.instruct(queued)
    visit.instruct(other_run)

    assert (await visit.next("reply")).message_id == other_run.message_id
    assert engine.performed == [first.message_id, other_run.message_id]
    slow.may_end.set()
    assert (await visit.next("reply")).message_id == first.message_id
    assert (await visit.next("reply")).message_id == queued.message_id


async def test_a_run_that_is_in_work_is_forgotten_after_it(
    server: RunningServer, engine: ScriptedEngine, visit: Visit, site: RunningSite
) -> None:
    slow = Gate()
    engine.perform_next.append(slow.perform)
    visit.instruct(instruct(server.services))
    await slow.begun.wait()
    forgetting = asyncio.create_task(site.daemon.instructions.forget(RUN))
    await site.daemon.instructions.forget(RunId("another"))
    assert engine.forgotten == ["another"]
    slow.may_end.set()
    await forgetting
    assert engine.forgotten == ["another", RUN]


async def test_runs_that_a_server_makes_up_leave_nothing_in_memory(
    server: RunningServer, visit: Visit, site: RunningSite
) -> None:
    for number in range(20):
        run = RunId(f"run-{number}")
        visit.instruct(instruct(server.services, run=run, message_id=message_id(run, 1, Phase.GUEST, 0, SITE)))
        await visit.next("reply")
    while site.daemon.instructions._tasks:
        await asyncio.sleep(0)
    assert len(site.daemon.instructions._turns) == 0


async def test_a_pause_is_told_to_the_server_and_refuses_new_work(
    server: RunningServer, site: RunningSite, engine: ScriptedEngine, visit: Visit
) -> None:
    site.daemon.instructions.paused = True
    site.daemon.stream.beat_now()
    while not (await visit.next("heartbeat")).paused:
        pass
    visit.instruct(instruct(server.services))

    assert (await visit.next("reply")).code == "site_paused"
    assert engine.performed == []


async def test_a_study_that_was_not_approved_is_refused(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    visit.instruct(instruct(server.services, study_digest=make_study(server.services, seed=5).digest()))

    assert (await visit.next("reply")).code == "study_not_approved"
    assert engine.performed == []


async def test_a_policy_that_became_stricter_counts_from_the_next_instruction_on(
    server: RunningServer, engine: ScriptedEngine, visit: Visit, folder: SiteFolder
) -> None:
    visit.instruct(instruct(server.services, 1))
    assert (await visit.next("reply")).code == ""
    folder.policy.write_text('protection = ["secagg"]\n')
    visit.instruct(instruct(server.services, 2))
    assert (await visit.next("reply")).code == "protection_refused"
    folder.policy.write_text("protection = maybe\n")
    visit.instruct(instruct(server.services, 3))
    assert (await visit.next("reply")).code == "policy_refused"
    assert len(engine.performed) == 1


async def test_a_task_of_another_version_is_not_run(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine, tmp_path: Path
) -> None:
    enrol(folder, server.services, server.address)
    add_others(server.services, tmp_path)
    study = make_study(server.services)
    other = study.model_copy(update={"task": study.task.model_copy(update={"digest": "0" * 64})})
    approve(folder, other)
    async with live(folder, engine):
        visit = await server.services.visit()
        visit.instruct(instruct(server.services, study_digest=other.digest()))
        assert (await visit.next("reply")).code == "task_mismatch"
    assert engine.performed == []


async def test_the_text_of_a_failed_task_does_not_leave_the_site(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    async def fail(*_: object) -> Reply:
        raise ValueError("patient 4711 has no blood pressure")

    engine.perform_next.append(fail)
    visit.instruct(instruct(server.services))

    reply = await visit.next("reply")
    assert reply.code == "task_failed"
    assert b"4711" not in reply.SerializeToString()
    assert reply.body == b""


async def test_a_refusal_of_the_engine_travels_as_its_code(
    server: RunningServer, engine: ScriptedEngine, visit: Visit
) -> None:
    async def refuse(*_: object) -> Reply:
        raise InputError("a text that stays here")

    engine.perform_next.append(refuse)
    visit.instruct(instruct(server.services))

    reply = await visit.next("reply")
    assert reply.code == "bad_input"
    assert b"stays" not in reply.SerializeToString()


@pytest.mark.parametrize(("phase", "code"), [(Phase.GUEST, "task_timeout"), (Phase.UPLOAD, "site_interrupted")])
async def test_work_that_is_not_done_by_its_deadline_is_stopped(
    server: RunningServer, engine: ScriptedEngine, visit: Visit, site: RunningSite, phase: Phase, code: str
) -> None:
    """In the steps of secure sums the server does not hear why: how long work takes depends on the records."""
    gate = Gate()
    engine.perform_next.append(gate.perform)
    visit.instruct(instruct(server.services, phase=phase, deadline_s=0.05))

    assert (await visit.next("reply")).code == code
    assert gate.stopped or not gate.begun.is_set()
    assert site.metric("quorate_client_instructions_refused_total", code=code) == 1


async def test_the_server_cannot_ask_for_more_time_than_the_study_gives(
    server: RunningServer, engine: ScriptedEngine, visit: Visit, folder: SiteFolder
) -> None:
    study = make_study(server.services, rounds=Rounds(count=3, quorum=3, deadline_s=0.000001))
    approve(folder, study)
    gate = Gate()
    engine.perform_next.append(gate.perform)
    visit.instruct(instruct(server.services, study_digest=study.digest(), deadline_s=1e6))

    assert (await visit.next("reply")).code == "task_timeout"
    assert gate.stopped


async def test_a_reply_that_cannot_be_stored_is_not_sent_and_the_work_is_not_repeated(
    server: RunningServer, engine: ScriptedEngine, visit: Visit, site: RunningSite
) -> None:
    begun = asyncio.Event()

    async def answer_at_length(instruction: Instruction, *_: object) -> Reply:
        begun.set()
        (pages,) = site.state.database.execute("PRAGMA page_count").fetchone()
        site.state.database.execute(f"PRAGMA max_page_count={pages}")
        return Reply(instruction.message_id, body=bytes(500_000))

    engine.perform_next.append(answer_at_length)
    instruction = instruct(server.services)
    visit.instruct(instruction)
    await begun.wait()
    visit.drain()
    await visit.next("heartbeat")
    site.state.database.execute("PRAGMA max_page_count=1000000")
    visit.instruct(instruction)

    assert (await visit.next("reply")).code == "site_interrupted"
    assert engine.performed == [instruction.message_id]
