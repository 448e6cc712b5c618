"""What sites say of studies before a run: kept once for each, from themselves only, and shown to operators only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import FrameError, NotFoundError, QuorateError, WrongRoleError
from quorate.identity import SiteName
from quorate.study.readiness import Readiness
from quorate.study.study import Study
from quorate.v1 import common_pb2, operator_pb2, operator_pb2_grpc, rounds_pb2
from quorate.wire.messages import readiness_from_proto, readiness_to_proto
from quorate_server.consortium.registry import Registry
from quorate_server.consortium.tables import ReadinessRecord
from tests.server.databases import made_database
from tests.server.door import Door, SiteKeys, a_study, open_door
from tests.server.services.test_rounds_service import EAST, WEST, Client, Server, open_server, refusals


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with open_server(tmp_path) as server:
        yield server


async def report(client: Client, digest: bytes, said: Readiness | common_pb2.Readiness) -> None:
    proto = readiness_to_proto(said) if isinstance(said, Readiness) else said
    with refusals():
        await client.stub.ReportReadiness(rounds_pb2.ReportReadinessRequest(digest=digest, readiness=proto))


def published(server: Server, *clients: Client) -> Study:
    study = a_study(*(client.keys for client in clients))
    server.registry.publish(study)
    return study


# --- the value ---


@pytest.mark.parametrize("said", [Readiness(), Readiness("policy_refused")])
def test_readiness_travels(said: Readiness) -> None:
    assert readiness_from_proto(readiness_to_proto(said)) == said


BAD_CODES = ["Patient 7", "a" * 65, "x\x1b[2J", "policy refused", "DROP", "ä"]


@pytest.mark.parametrize("proto", [common_pb2.Readiness(code=code) for code in BAD_CODES], ids=str)
async def test_a_malformed_report_is_refused_and_changes_nothing(server: Server, proto: common_pb2.Readiness) -> None:
    east = server.client("east")
    digest = published(server, east).digest()
    await report(east, digest, Readiness("policy_refused"))
    before = server.registry.readiness(digest)
    with pytest.raises(FrameError):
        await report(east, digest, proto)
    assert server.registry.readiness(digest) == before


# --- who may say it ---


async def test_a_site_reports_for_itself_and_for_studies_that_name_it(server: Server) -> None:
    east, west = server.client("east"), server.client("west")
    digest = published(server, east).digest()
    await report(east, digest, Readiness("policy_refused"))
    for client, name in ((west, digest), (east, bytes(32)), (east, b""), (east, digest[:12])):
        with pytest.raises(NotFoundError):
            await report(client, name, Readiness("policy_refused"))
    assert server.registry.readiness(digest) == (ReadinessRecord(EAST, Readiness("policy_refused"), server.clock()),)


async def test_a_site_speaks_in_its_own_name_whatever_the_others_said(server: Server) -> None:
    east, west = server.client("east"), server.client("west")
    digest = published(server, east, west).digest()
    await report(east, digest, Readiness())
    await report(west, digest, Readiness("task_missing"))
    said = {record.site: record.readiness.code for record in server.registry.readiness(digest)}
    assert said == {EAST: "", WEST: "task_missing"}


async def test_an_operator_reports_for_nobody(server: Server) -> None:
    digest = published(server, server.client("east")).digest()
    with pytest.raises(WrongRoleError):
        await report(server.operator(), digest, Readiness())
    assert server.registry.readiness(digest) == ()


async def test_a_flood_of_reports_takes_the_room_of_one(server: Server) -> None:
    east = server.client("east")
    digest = published(server, east).digest()
    for number in range(200):
        await report(east, digest, Readiness(f"code_{number}"))
    (record,) = server.registry.readiness(digest)
    assert record.readiness.code == "code_199"


# --- the register ---


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    engine = made_database(database_url)
    yield Registry(engine, lambda: 1_800_000_000.0)
    engine.dispose()


def test_reports_are_kept_as_they_were_said(registry: Registry) -> None:
    study = a_study(SiteKeys.make("east"), SiteKeys.make("west"))
    digest = registry.publish(study).digest
    for said in (Readiness("policy_refused"), Readiness()):
        registry.record_readiness(digest, EAST, said)
        assert registry.readiness(digest) == (ReadinessRecord(EAST, said, 1_800_000_000.0),)
    registry.record_readiness(digest, WEST, Readiness())
    assert [record.site for record in registry.readiness(digest)] == [EAST, WEST]
    assert registry.readiness(bytes(32)) == ()


def test_a_site_without_a_part_is_not_kept(registry: Registry) -> None:
    digest = registry.publish(a_study(SiteKeys.make("east"))).digest
    with pytest.raises(NotFoundError):
        registry.record_readiness(digest, WEST, Readiness())
    assert registry.readiness(digest) == ()


# --- the operator's door ---


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_door(tmp_path / "server") as door:
        yield door


@pytest.fixture
async def operator(door: Door) -> AsyncIterator[Any]:
    async with door.channel(door.operator()) as channel:
        yield operator_pb2_grpc.OperatorStub(channel)


async def plan(operator: Any, study: str = "malignancy") -> operator_pb2.StudyPlan:
    return await operator.PlanStudy(operator_pb2.GetStudyRequest(study=study))


async def test_an_operator_sees_what_each_site_said_and_when(door: Door, operator: Any) -> None:
    (north, _), (south, _) = door.enrol("north"), door.enrol("south")
    digest = door.registry.publish(a_study(north, south)).digest
    door.registry.record_readiness(digest, SiteName("south"), Readiness("policy_refused"))
    found = await plan(operator)
    assert [(answer.site, answer.answer) for answer in found.study.answers] == [("north", "none"), ("south", "none")]
    (said,) = found.sites
    assert (said.site, said.at_unix_s) == ("south", door.clock())
    assert readiness_from_proto(said.readiness) == Readiness("policy_refused")


async def test_what_a_site_said_before_it_was_revoked_or_became_another_counts_no_more(
    door: Door, operator: Any
) -> None:
    digest = door.registry.publish(a_study(*(door.enrol(name)[0] for name in ("north", "south", "west")))).digest
    for name in ("north", "south", "west"):
        door.registry.record_readiness(digest, SiteName(name), Readiness())
    door.registry.revoke_site(SiteName("north"))
    door.registry.revoke_site(SiteName("south"))
    door.enrol("south")  # again, with another key than the study names
    assert [said.site for said in (await plan(operator)).sites] == ["west"]


async def test_a_site_s_certificate_sees_no_plan(door: Door) -> None:
    north, issued = door.enrol("north")
    door.registry.publish(a_study(north))
    async with door.channel(door.credential(issued, north.key_pem())) as channel:
        with pytest.raises(WrongRoleError), refusals():
            await plan(operator_pb2_grpc.OperatorStub(channel))


async def test_of_a_study_that_is_not_there_there_is_no_plan(operator: Any) -> None:
    with pytest.raises(QuorateError) as caught, refusals():
        await plan(operator)
    assert caught.value.code == NotFoundError.code
