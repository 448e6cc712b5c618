"""Enough sites must have signed a study before this one works for it, whatever the server says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from quorate.identity import SiteName
from quorate.rounds.instruction import Instruction, Phase, Reply, message_id
from quorate.study.approval import Approval
from quorate.study.study import Study
from quorate.wire.messages import reply_from_proto
from quorate_client.site.folder import SiteFolder

from ..conftest import (
    RUN,
    SITE,
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
from ..consortium import RunningServer, Server, Visit

NEEDED = 3


def counting_on_others(services: Server) -> Study:
    return make_study(services, approvals=NEEDED)


@pytest.fixture
async def site(
    folder: SiteFolder, server: RunningServer, engine: ScriptedEngine, tmp_path: Path
) -> AsyncIterator[RunningSite]:
    """A running site that has approved a study which needs two others."""
    enrol(folder, server.services, server.address)
    add_others(server.services, tmp_path)
    study = counting_on_others(server.services)
    approve(folder, study)
    server.services.studies.append(study)
    async with live(folder, engine) as running:
        yield running


@pytest.fixture
async def visit(server: RunningServer, site: RunningSite) -> Visit:
    return await server.services.visit()


def signed(services: Server, names: list[str], answer: str = "approved", digest: bytes | None = None) -> list[Approval]:
    digest = counting_on_others(services).digest() if digest is None else digest
    return [Approval(SiteName(name), services.sign_as[SiteName(name)](answer, digest)) for name in names]


def work_for(services: Server, round_number: int = 1) -> Instruction:
    name = message_id(RUN, round_number, Phase.GUEST, 0, SITE)
    return instruct(services, round_number, message_id=name, study_digest=counting_on_others(services).digest())


async def answer_to(visit: Visit, instruction: Instruction) -> Reply:
    visit.instruct(instruction)
    return reply_from_proto(await visit.next("reply"))


async def test_a_site_works_when_enough_others_have_signed_and_remembers_them(talk: Talk) -> None:
    services = talk.services
    services.approvals = signed(services, sorted(services.sign_as)[:2])
    assert (await answer_to(talk.visit, work_for(services))).code == ""
    services.approvals = []  # what was signed once is not asked for again
    assert (await answer_to(talk.visit, work_for(services, 2))).code == ""


async def test_a_site_that_was_refused_for_want_of_approvals_works_when_they_are_there(talk: Talk) -> None:
    services = talk.services
    services.approvals = signed(services, sorted(services.sign_as)[:1])
    assert (await answer_to(talk.visit, work_for(services))).code == "study_not_approved"
    services.approvals = signed(services, sorted(services.sign_as)[1:2])
    assert (await answer_to(talk.visit, work_for(services, 2))).code == ""


@dataclass
class Meanwhile:
    """Approvals that the server keeps back until something happened at the site."""

    happens: Callable[[], object]
    approvals: list[Approval]

    def __iter__(self) -> Iterator[Approval]:
        self.happens()
        return iter(self.approvals)


@pytest.mark.parametrize("what", ["study_not_approved", "site_paused", "protection_refused"])
async def test_what_the_site_says_while_the_server_keeps_approvals_back_counts(
    server: RunningServer, folder: SiteFolder, site: RunningSite, visit: Visit, engine: ScriptedEngine, what: str
) -> None:
    """The server may let a site wait for as long as it likes, and was obeyed then as of the first day."""
    services = server.services

    def happens() -> None:
        match what:
            case "study_not_approved":
                approve(folder, counting_on_others(services), "rejected")
            case "site_paused":
                site.daemon.instructions.paused = True
            case _:
                folder.policy.write_text("")  # the defaults allow secure aggregation only

    services.approvals = Meanwhile(happens, signed(services, sorted(services.sign_as)[:2]))
    assert (await answer_to(visit, work_for(services))).code == what
    assert engine.performed == []


@pytest.mark.parametrize("attack", ["none", "twice", "own", "rejected", "another study", "another name", "a stranger"])
async def test_a_server_cannot_make_up_approvals(talk: Talk, attack: str) -> None:
    services = talk.services
    first, second = sorted(services.sign_as)[:2]
    good = signed(services, [first])
    forged = {
        "none": [],
        "twice": good * 3,
        "own": [replace(good[0], site=SITE)],
        "rejected": signed(services, [second], answer="rejected"),
        "another study": signed(services, [second], digest=make_study(services).digest()),
        "another name": [replace(good[0], site=SiteName(second))],
        "a stranger": [replace(good[0], site=SiteName("nowhere"))],
    }[attack]
    services.approvals = good + forged
    assert (await answer_to(talk.visit, work_for(services))).code == "study_not_approved"
    assert talk.engine.performed == []
