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

from ..conftest import (
    RUN,
    SITE,
    Gate,
    RunningSite,
    ScriptedEngine,
    Talk,
    add_others,
    approve,
    enrol,
    instruct,
    live,
    make_study,
)
from ..consortium import Authority, RunningServer, Visit, start_server


def killed(talk: Talk, to: Path) -> SiteFolder:
    """What is on the disk at this moment: all that a site which is killed now comes back with."""
    shutil.copytree(talk.folder.root, to)
    return SiteFolder(to)


def send_unknown(talk: Talk, round_number: int = 99) -> None:
    """An instruction of a phase that this version does not know."""
    proto = instruction_to_proto(instruct(talk.services, round_number))
    proto.phase = "prune"
    talk.visit.send(instruction=proto)


def refuse_reply(talk: Talk, asked: Instruction, error: QuorateError) -> None:
    refused = rounds_pb2.RefusedReply(message_id=asked.message_id, reason=detail_of(error))
    talk.visit.send(refused_reply=refused)


async def test_a_site_does_what_it_is_told_and_answers(talk: Talk) -> None:
    asked = talk.instruct()
    reply = await talk.reply()
    assert (reply.message_id, reply.code, reply.body) == (asked.message_id, "", b"cba")


async def test_an_acknowledged_success_is_counted(talk: Talk) -> None:
    asked = talk.instruct()
    await talk.reply()
    talk.visit.acknowledge(asked.message_id)
    await talk.ask(2)
    assert talk.site.metric("quorate_client_instructions_done_total", phase="guest") == 2
    assert (talk.site.metric("quorate_client_last_success_timestamp_seconds") or 0) > 0
    assert talk.owed() == [2]


# --- at most once, and never lost ---


async def test_a_reply_that_was_sent_is_on_disk_and_sent_again_after_a_kill(talk: Talk, tmp_path: Path) -> None:
    talk.instruct()
    sent = await talk.visit.next("reply")
    folder = killed(talk, tmp_path / "killed")
    await talk.site.stop()

    engine = ScriptedEngine()
    async with live(folder, engine):
        again = await (await talk.services.visit()).next("reply")
    assert again == sent
    assert engine.performed == []


async def test_a_site_that_was_killed_at_work_says_so_and_does_not_work_again(talk: Talk, tmp_path: Path) -> None:
    asked, _ = await talk.hold()
    folder = killed(talk, tmp_path / "killed")
    await talk.site.stop()

    engine = ScriptedEngine()
    async with live(folder, engine):
        next_visit = await talk.services.visit()
        first = reply_from_proto(await next_visit.next("reply"))
        next_visit.instruct(asked)
        repeated = reply_from_proto(await next_visit.next("reply"))
    assert first == repeated == Reply(asked.message_id, "site_interrupted")
    assert engine.performed == []


async def test_an_instruction_that_is_repeated_during_the_work_is_passed_over(talk: Talk) -> None:
    asked, gate = await talk.hold()
    talk.visit.instruct(asked)
    send_unknown(talk)
    assert (await talk.visit.next("reply")).code == "bad_frame"  # so it has looked at all that came before
    gate.may_end.set()
    assert (await talk.reply()).body == b"done"
    assert talk.engine.performed == [asked.message_id]


async def test_a_repeated_instruction_gets_the_stored_reply_even_after_it_was_acknowledged(talk: Talk) -> None:
    asked = talk.instruct()
    first = await talk.visit.next("reply")
    talk.visit.acknowledge(asked.message_id)
    talk.visit.instruct(asked)
    assert await talk.visit.next("reply") == first
    assert talk.engine.performed == [asked.message_id]


async def test_an_acknowledged_reply_is_not_sent_again_at_the_next_connection(talk: Talk) -> None:
    first = talk.instruct(1)
    await talk.reply()
    talk.visit.acknowledge(first.message_id)
    second = talk.instruct(2)
    await talk.reply()
    await talk.hang_up()
    assert (await talk.reply()).message_id == second.message_id


async def test_a_reply_whose_bulk_data_the_server_lost_is_delivered_again(talk: Talk) -> None:
    asked = talk.instruct()
    first = await talk.visit.next("reply")
    refuse_reply(talk, asked, BlobMissingError("A reply refers to bulk data that was not uploaded"))
    assert await talk.visit.next("reply") == first


async def test_a_reply_that_the_server_cannot_use_is_let_go(talk: Talk) -> None:
    asked = talk.instruct()
    await talk.reply()
    refuse_reply(talk, asked, ContributionError("The contribution has another form"))
    await talk.ask(2)
    assert talk.owed() == [2]


# --- the connection ---


async def test_a_site_comes_back_under_a_higher_number_when_the_line_breaks(talk: Talk) -> None:
    before = talk.visit.hello.session
    await talk.hang_up()
    assert talk.visit.hello.session > before


async def test_a_site_finds_a_server_that_was_restarted_within_seconds(server: RunningServer, talk: Talk) -> None:
    await server.stop()
    begun = time.monotonic()
    restarted = await start_server(server.services, server.port)
    try:
        await (await server.services.visit()).next("heartbeat")
        assert time.monotonic() - begun < LONGEST_S
        assert talk.site.metric("quorate_client_connections_total") == 2
    finally:
        await restarted.stop()


async def test_a_site_leaves_a_server_that_has_fallen_silent(talk: Talk) -> None:
    talk.services.beats = False
    again = await talk.services.visit()
    assert again.hello.session > talk.visit.hello.session


async def test_work_goes_on_while_the_connection_is_lost(talk: Talk) -> None:
    _, gate = await talk.hold()
    await talk.hang_up()
    gate.may_end.set()
    assert (await talk.reply()).body == b"done"


async def test_heartbeats_are_sent_as_often_as_the_server_asks(visit: Visit) -> None:
    first, second = await visit.next("heartbeat"), await visit.next("heartbeat")
    assert second.sequence == first.sequence + 1
    assert not first.paused


@pytest.mark.parametrize("error", [SupersededError, IdentityClonedError, CertificateRevokedError])
async def test_a_site_whose_identity_must_not_go_on_stops_and_does_not_come_back(
    talk: Talk, error: type[QuorateError]
) -> None:
    talk.visit.refuse(error("The server says no", action="Ask the operator"))
    with pytest.raises(error, match="Ask the operator"):
        async with asyncio.timeout(PATIENCE_S):
            await talk.site.running
    report = talk.site.state.connection
    assert report is not None
    assert (report.state, report.code) == ("stopped", error.code)
    assert talk.services.visits.empty()


async def test_a_copy_of_a_site_is_told_so_at_its_first_word(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address)
    server.services.faults.welcome_refused = IdentityClonedError("Two daemons use one identity")
    async with live(folder, engine) as copy:
        with pytest.raises(IdentityClonedError):
            async with asyncio.timeout(PATIENCE_S):
                await copy.running


async def test_a_site_comes_back_after_any_other_refusal(talk: Talk) -> None:
    talk.visit.refuse(WrongStateError("The server is being restored"))
    assert (await talk.services.visit()).hello.session > talk.visit.hello.session


async def test_a_server_with_a_foreign_certificate_gets_nothing(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    impostor = await start_server(server.services, issuer=Authority("testers"))
    enrol(folder, server.services, impostor.address)
    try:
        async with live(folder, engine) as site:
            assert (await site.state.until("waiting")).code == "server_identity"
            assert server.services.visits.empty()
    finally:
        await impostor.stop()


async def test_a_site_that_stops_answers_what_it_interrupts_and_says_goodbye(talk: Talk) -> None:
    await talk.hold()
    await talk.site.stop()
    assert (await talk.reply()).code == "site_interrupted"
    assert (await talk.visit.next("goodbye")).reason == "stopping"
    report = talk.site.state.connection
    assert report is not None
    assert report.state == "stopped"


async def test_a_site_that_stops_while_no_server_is_there_ends_at_once(server: RunningServer, talk: Talk) -> None:
    await server.stop()
    await talk.site.stop()
    assert talk.site.running.done()


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


async def test_an_instruction_that_this_version_does_not_know_is_answered_with_a_code(talk: Talk) -> None:
    send_unknown(talk)
    assert (await talk.reply()).code == "bad_frame"
    assert talk.engine.performed == []


async def test_an_event_that_this_version_does_not_know_is_passed_over(talk: Talk) -> None:
    talk.visit.send()
    talk.visit.send(studies_changed=rounds_pb2.StudiesChanged())
    assert (await talk.ask()).code == ""


# --- what the site decides ---


async def test_a_withdrawn_instruction_is_stopped_and_not_answered(talk: Talk) -> None:
    first, gate = await talk.hold()
    talk.visit.send(withdraw=rounds_pb2.Withdraw(message_id=first.message_id))
    second = talk.instruct(2)
    assert (await talk.reply()).message_id == second.message_id
    assert gate.stopped
    assert talk.owed() == [2]


async def test_instructions_of_one_run_are_done_one_after_the_other_and_runs_beside_each_other(talk: Talk) -> None:
    first, gate = await talk.hold()
    queued = talk.instruct(2)
    other_run = talk.instruct(run="run-2", message_id=message_id(RUN, 9, Phase.GUEST, 0, SITE, salt=b"other run"))
    assert (await talk.reply()).message_id == other_run.message_id
    assert talk.engine.performed == [first.message_id, other_run.message_id]
    gate.may_end.set()
    assert (await talk.reply()).message_id == first.message_id
    assert (await talk.reply()).message_id == queued.message_id


async def test_a_run_that_is_in_work_is_forgotten_after_it(talk: Talk) -> None:
    _, gate = await talk.hold()
    instructions = talk.site.daemon.instructions
    forgetting = asyncio.create_task(instructions.forget(RUN))
    await instructions.forget(RunId("another"))
    assert talk.engine.forgotten == ["another"]
    gate.may_end.set()
    await forgetting
    assert talk.engine.forgotten == ["another", RUN]


async def test_runs_that_a_server_makes_up_leave_nothing_in_memory(talk: Talk) -> None:
    for number in range(20):
        run = RunId(f"run-{number}")
        await talk.ask(run=run, message_id=message_id(run, 1, Phase.GUEST, 0, SITE))
    while talk.site.daemon.instructions._tasks:
        await asyncio.sleep(0)
    assert len(talk.site.daemon.instructions._turns) == 0


async def test_a_pause_is_told_to_the_server_and_refuses_new_work(talk: Talk) -> None:
    talk.site.daemon.instructions.paused = True
    talk.site.daemon.stream.beat_now()
    while not (await talk.visit.next("heartbeat")).paused:
        pass
    assert (await talk.ask()).code == "site_paused"
    assert talk.engine.performed == []


async def test_a_study_that_was_not_approved_is_refused(talk: Talk) -> None:
    assert (await talk.ask(study_digest=make_study(talk.services, seed=5).digest())).code == "study_not_approved"
    assert talk.engine.performed == []


async def test_a_policy_that_became_stricter_counts_from_the_next_instruction_on(talk: Talk) -> None:
    assert (await talk.ask(1)).code == ""
    talk.folder.policy.write_text('protection = ["secagg"]\n')
    assert (await talk.ask(2)).code == "protection_refused"
    talk.folder.policy.write_text("protection = maybe\n")
    assert (await talk.ask(3)).code == "policy_refused"
    assert len(talk.engine.performed) == 1


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("patient 4711 has no blood pressure"), "task_failed"),
        (InputError("patient 4711 has no blood pressure"), "bad_input"),
    ],
    ids=["of a task that failed", "of a refusal"],
)
async def test_the_text_of_a_failure_does_not_leave_the_site(talk: Talk, error: Exception, code: str) -> None:
    async def fail(*_: object) -> Reply:
        raise error

    talk.engine.perform_next.append(fail)
    talk.instruct()
    reply = await talk.visit.next("reply")
    assert (reply.code, reply.body) == (code, b"")
    assert b"4711" not in reply.SerializeToString()


@pytest.mark.parametrize(("phase", "code"), [(Phase.GUEST, "task_timeout"), (Phase.UPLOAD, "site_interrupted")])
async def test_work_that_is_not_done_by_its_deadline_is_stopped(talk: Talk, phase: Phase, code: str) -> None:
    """In the steps of secure sums the server does not hear why: how long work takes depends on the records."""
    gate = Gate()
    talk.engine.perform_next.append(gate.perform)
    assert (await talk.ask(phase=phase, deadline_s=0.05)).code == code
    assert gate.stopped or not gate.begun.is_set()
    assert talk.site.metric("quorate_client_instructions_refused_total", code=code) == 1


async def test_the_server_cannot_ask_for_more_time_than_the_study_gives(talk: Talk) -> None:
    study = make_study(talk.services, rounds=Rounds(count=3, quorum=3, deadline_s=0.000001))
    approve(talk.folder, study)
    gate = Gate()
    talk.engine.perform_next.append(gate.perform)
    assert (await talk.ask(study_digest=study.digest(), deadline_s=1e6)).code == "task_timeout"
    assert gate.stopped


async def test_a_reply_that_cannot_be_stored_is_not_sent_and_the_work_is_not_repeated(
    talk: Talk, site: RunningSite
) -> None:
    begun = asyncio.Event()

    async def answer_at_length(instruction: Instruction, *_: object) -> Reply:
        begun.set()
        (pages,) = site.state.database.execute("PRAGMA page_count").fetchone()
        site.state.database.execute(f"PRAGMA max_page_count={pages}")
        return Reply(instruction.message_id, body=bytes(500_000))

    talk.engine.perform_next.append(answer_at_length)
    asked = talk.instruct()
    await begun.wait()
    talk.visit.drain()
    await talk.visit.next("heartbeat")
    site.state.database.execute("PRAGMA max_page_count=1000000")
    talk.visit.instruct(asked)
    assert (await talk.reply()).code == "site_interrupted"
    assert talk.engine.performed == [asked.message_id]
