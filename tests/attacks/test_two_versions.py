"""A study may name a second version of its task until a day. Neither whoever publishes studies nor the server may use
that to have code run that a site did not agree to, or for longer."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from quorate.errors import StudyError
from quorate.study.study import Study
from quorate.study.task_digest import task_digest
from quorate.v1 import rounds_pb2
from quorate.wire.messages import member_to_proto
from quorate_client.approval.offers import Offer, Unsound, read_offers
from quorate_client.site.folder import SiteFolder
from tests.client.conftest import APP, ScriptedEngine, add_others, approve, enrol, instruct, live, make_study
from tests.client.consortium import RunningServer, Server

LAST_DAY = "2027-01-31"


def with_two_versions(services: Server) -> Study:
    """Installed here is the second one."""
    also = {"digest": task_digest(APP), "until": LAST_DAY}
    return make_study(services, task={"name": APP, "digest": "0" * 64, "also": also})


def lengthened(content: dict[str, Any]) -> None:
    content["task"]["also"]["until"] = "2037-01-31"


def exchanged(content: dict[str, Any]) -> None:
    content["task"]["also"]["digest"] = "f" * 64


def added(content: dict[str, Any]) -> None:
    content["task"] = content["task"] | {"also": {"digest": "f" * 64, "until": LAST_DAY}}


def taken_away(content: dict[str, Any]) -> None:
    del content["task"]["also"]


@pytest.mark.parametrize("change", [lengthened, exchanged, added, taken_away])
def test_a_server_that_changes_the_second_version_offers_no_study(
    joined: SiteFolder, services: Server, change: Callable[[dict[str, Any]], None]
) -> None:
    study = make_study(services) if change is added else with_two_versions(services)
    content = json.loads(study.canonical())
    change(content)
    offers = []
    for canonical in (study.canonical(), rfc8785.dumps(content)):
        members = [member_to_proto(services.members[name]) for name in study.site_names]
        offers.append(rounds_pb2.SiteStudy(digest=study.digest(), canonical=canonical, members=members))
    honest, spoilt = read_offers(rounds_pb2.SiteStudiesReply(studies=offers))
    assert isinstance(honest, Offer)
    assert isinstance(spoilt, Unsound)
    assert isinstance(spoilt.problem, StudyError)


async def test_the_second_version_works_until_its_last_day_is_over_and_no_instruction_longer(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine, tmp_path: Path
) -> None:
    """An approval does not outlast the day, nor does a run that began before."""
    enrol(folder, server.services, server.address)
    add_others(server.services, tmp_path)
    study = with_two_versions(server.services)
    approve(folder, study)
    now = [datetime.fromisoformat(f"{LAST_DAY}T23:59:59+00:00").timestamp()]
    async with live(folder, engine, wall=lambda: now[0]):
        visit = await server.services.visit()
        visit.instruct(instruct(server.services, 1, study_digest=study.digest()))
        assert (await visit.next("reply")).code == ""
        now[0] += 1
        visit.instruct(instruct(server.services, 2, study_digest=study.digest()))
        assert (await visit.next("reply")).code == "task_mismatch"
    assert len(engine.performed) == 1
