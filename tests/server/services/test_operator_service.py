from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from quorate.errors import (
    AlreadyExistsError,
    InputError,
    NotFoundError,
    QuorateError,
    StudyError,
    WrongStateError,
)
from quorate.identity import RunId, SiteName
from quorate.rounds.blobs import FRAME_BYTES
from quorate.rounds.run import RunState
from quorate.v1 import operator_pb2, operator_pb2_grpc
from quorate.wire.messages import run_from_proto
from quorate.wire.refusal import error_from_call
from quorate_server.services.operator_service import find_run
from tests.server.door import Door, SiteKeys, a_study, open_door, told


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_door(tmp_path / "server") as door:
        yield door


@pytest.fixture
async def operator(door: Door) -> AsyncIterator[Any]:
    async with door.channel(door.operator()) as channel:
        yield operator_pb2_grpc.OperatorStub(channel)


async def refusal(call: Any) -> QuorateError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_call(caught.value, "the server")


def publishing(study: Any) -> operator_pb2.PublishStudyRequest:
    return operator_pb2.PublishStudyRequest(canonical=study.canonical())


async def test_an_invitation_holds_what_a_site_needs_to_join(door: Door, operator: Any) -> None:
    invitation = await operator.InviteSite(operator_pb2.InviteSiteRequest(name="north"))
    assert (invitation.consortium, invitation.address, invitation.site) == ("north-sea", "localhost:8443", "north")
    assert invitation.ca_pem == door.authority.ca_pem
    assert invitation.expires_unix_s == int(door.clock()) + 7 * 86_400
    assert b"PRIVATE KEY" in invitation.key_pem
    (site,) = (await operator.ListSites(operator_pb2.ListSitesRequest())).sites
    assert (site.name, site.state, site.HasField("member")) == ("north", "invited", False)
    assert site.invitation_expires_unix_s == invitation.expires_unix_s


async def test_an_invitation_is_valid_as_long_as_asked_for_within_bounds(door: Door, operator: Any) -> None:
    asked = operator_pb2.InviteSiteRequest(name="north", valid_s=3600)
    assert (await operator.InviteSite(asked)).expires_unix_s == int(door.clock()) + 3600
    too_long = operator_pb2.InviteSiteRequest(name="south", valid_s=91 * 86_400)
    assert isinstance(await refusal(operator.InviteSite(too_long)), InputError)
    assert [site.name for site in door.registry.sites()] == ["north"]


@pytest.mark.parametrize("name", ["", "North", "a/../b", "x" * 64, "quorate://x"])
async def test_a_name_that_is_none_is_not_invited(door: Door, operator: Any, name: str) -> None:
    assert isinstance(await refusal(operator.InviteSite(operator_pb2.InviteSiteRequest(name=name))), InputError)
    assert door.registry.sites() == ()


async def test_a_list_of_sites_shows_who_is_there(door: Door, operator: Any) -> None:
    keys, issued = door.enrol("north")
    door.enrol("south")
    await door.connect("north")
    north, south = (await operator.ListSites(operator_pb2.ListSitesRequest())).sites
    assert (north.state, north.version, north.member.signing_key) == ("online", "0.1.0", keys.member.signing_key)
    assert north.certificate_expires_unix_s == issued.expires_unix_s
    assert (south.state, south.last_seen_unix_s) == ("offline", 0)


async def test_revoking_a_site_ends_its_connection_at_once(door: Door, operator: Any) -> None:
    door.enrol("north")
    session = await door.connect("north")
    status = await operator.RevokeSite(operator_pb2.RevokeSiteRequest(name="north"))
    assert status.state == "revoked"
    assert told(session) == ["certificate_revoked", "end"]
    assert door.sessions.session(session.site) is None
    unknown = operator_pb2.RevokeSiteRequest(name="east")
    assert isinstance(await refusal(operator.RevokeSite(unknown)), NotFoundError)


async def test_a_published_study_is_announced_and_waits_for_its_sites_answers(door: Door, operator: Any) -> None:
    (north, _), (south, _) = door.enrol("north"), door.enrol("south")
    study = a_study(north, south)
    session = await door.connect("north")
    with capture_logs() as logs:
        status = await operator.PublishStudy(publishing(study))
    assert (status.digest, status.canonical) == (study.digest(), study.canonical())
    assert [(answer.site, answer.answer) for answer in status.answers] == [("north", "none"), ("south", "none")]
    assert told(session) == ["studies_changed"]
    assert [entry["log_level"] for entry in logs] == ["info", "warning"]
    door.registry.record_answer(study.digest(), SiteName("south"), "approved", b"signed")
    found = await operator.GetStudy(operator_pb2.GetStudyRequest(study=study.digest().hex()[:10]))
    assert [(answer.answer, answer.signature) for answer in found.answers] == [("none", b""), ("approved", b"signed")]


async def test_publishing_the_same_study_again_changes_nothing(door: Door, operator: Any) -> None:
    keys, _ = door.enrol("north")
    first = await operator.PublishStudy(publishing(a_study(keys)))
    assert await operator.PublishStudy(publishing(a_study(keys))) == first
    changed = a_study(keys, purpose="Another")
    assert isinstance(await refusal(operator.PublishStudy(publishing(changed))), AlreadyExistsError)
    assert list((await operator.ListStudies(operator_pb2.ListStudiesRequest())).studies) == [first]


async def test_a_study_that_the_consortium_cannot_stand_behind_is_refused(door: Door, operator: Any) -> None:
    (north, _), (south, _), (gone, _) = door.enrol("north"), door.enrol("south"), door.enrol("gone")
    door.registry.revoke_site(SiteName("gone"))
    door.invitation("invited")
    session = await door.connect("north")
    stranger = SiteKeys.make("north")
    attacks = {
        "another consortium": a_study(north, consortium="south-sea"),
        "north has the key": a_study(stranger, south),
        "invited has not joined": a_study(SiteKeys.make("invited")),
        "unknown has not joined": a_study(SiteKeys.make("unknown")),
        "gone was revoked": a_study(gone),
        "does not run the Flower app": a_study(
            north,
            task={"name": "flower:apps:client", "digest": "00" * 32},
            guest={"server_app": "os:system"},
        ),
    }
    for message, study in attacks.items():
        error = await refusal(operator.PublishStudy(publishing(study)))
        assert isinstance(error, StudyError), message
        assert message in str(error)
    assert door.registry.studies() == ()
    assert told(session) == []


async def test_a_study_that_is_not_in_canonical_form_is_refused(door: Door, operator: Any) -> None:
    keys, _ = door.enrol("north")
    for canonical in (b"", b"{}", a_study(keys).canonical().replace(b'":', b'": ', 1)):
        request = operator_pb2.PublishStudyRequest(canonical=canonical)
        assert isinstance(await refusal(operator.PublishStudy(request)), StudyError)
    assert door.registry.studies() == ()


async def test_a_run_is_started_paused_resumed_and_stopped_by_a_part_of_its_id(door: Door, operator: Any) -> None:
    keys, _ = door.enrol("north")
    await operator.PublishStudy(publishing(a_study(keys)))
    started = await operator.StartRun(operator_pb2.StartRunRequest(study="malignancy"))
    assert run_from_proto(started) == door.runs.list()[0]
    request = operator_pb2.GetRunRequest(run="malig")
    assert (await operator.PauseRun(request)).state == "paused"
    assert (await operator.GetRun(request)).reason.what == "An operator paused the run"
    assert (await operator.ResumeRun(request)).state == "running"
    assert (await operator.StopRun(request)).state == "stopped"
    assert [run.state for run in (await operator.ListRuns(operator_pb2.ListRunsRequest())).runs] == ["stopped"]


async def test_a_study_that_is_not_published_cannot_be_started(door: Door, operator: Any) -> None:
    error = await refusal(operator.StartRun(operator_pb2.StartRunRequest(study="malignancy")))
    assert isinstance(error, NotFoundError)
    assert door.runs.list() == []


async def test_an_ambiguous_or_unknown_id_names_no_run(door: Door) -> None:
    keys = SiteKeys.make("north")
    for _ in range(2):
        await door.runs.start(a_study(keys))
    exact = door.runs.list()[1]
    longer = replace(exact, run=RunId(exact.run + "a"), study="malignancy-2")
    assert find_run(exact.run, [longer, exact]) == exact.run
    assert find_run(exact.study, [longer, exact]) == exact.run
    for text in ("", "malig", "other"):
        with pytest.raises(NotFoundError):
            find_run(text, door.runs.list())


async def test_a_watch_shows_each_change_and_ends_with_the_run(door: Door, operator: Any) -> None:
    view = await door.runs.start(a_study(SiteKeys.make("north")))
    rounds: list[int] = []  # each result travels once
    states = []
    async for status in operator.WatchRun(operator_pb2.GetRunRequest(run=view.run)):
        seen = run_from_proto(status)
        rounds += [result.round_number for result in seen.results]
        states.append((len(rounds), seen.state))
        if not seen.state.is_over:
            await door.runs.close_round(view.run, loss=1.0 / (1 + len(rounds)))
    assert states == [(0, RunState.RUNNING), (1, RunState.RUNNING), (2, RunState.RUNNING), (3, RunState.COMPLETED)]


async def test_reports_and_models_arrive_in_frames_as_they_were_sent(door: Door, operator: Any, tmp_path: Path) -> None:
    view = await door.runs.start(a_study(SiteKeys.make("north")))
    content = bytes(range(256)) * 3000
    door.runs.model_path = tmp_path / "model.npz"
    door.runs.model_path.write_bytes(content)
    frames = [frame async for frame in operator.FetchModel(operator_pb2.GetRunRequest(run=view.run))]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert {len(frame.data) for frame in frames[:-1]} == {FRAME_BYTES}
    assert b"".join(frame.data for frame in frames) == content
    report = operator_pb2.GetReportRequest(run=view.run, format="html")
    assert b"".join([frame.data async for frame in operator.GetReport(report)]) == f"<p>{view.run}".encode()


async def test_a_model_that_is_not_released_and_a_report_of_no_form_are_refused(door: Door, operator: Any) -> None:
    view = await door.runs.start(a_study(SiteKeys.make("north")))
    model = operator.FetchModel(operator_pb2.GetRunRequest(run=view.run))
    assert isinstance(await refusal(anext(aiter(model))), WrongStateError)
    report = operator.GetReport(operator_pb2.GetReportRequest(run=view.run, format="pdf"))
    assert isinstance(await refusal(anext(aiter(report))), InputError)
