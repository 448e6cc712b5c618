"""A server that asks a site for more than its administrator agreed to. Nothing is computed, and the ledger says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quorate.rounds.instruction import Instruction, Phase, message_id
from quorate.study.study import Protection, Rounds, Site, Study, TaskRef
from quorate.study.task_digest import task_digest
from quorate.wire.messages import reply_from_proto
from quorate_client.approval.answers import Answer, Answers
from quorate_client.approval.datasets import Datasets
from quorate_client.ledger.entries import Refused
from quorate_client.site.agreement import Dataset
from quorate_client.site.database import open_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_keys
from tests.client.conftest import POLICY, RUN, SITE, ScriptedEngine, add_others, enrol, live, make_study
from tests.client.consortium import Authority, Server, Visit, start_server
from tests.client.ledger_kit import opened

TASK = "tabular-classifier"
TRAINING = {"clip": 1.0, "batch_size": 32, "steps": 5, "epsilon": 2.0}
STRICT = POLICY + "[privacy]\nrequire = ['training']\nlargest_clip = 1.0\nepsilon_per_run = 2.0\nlargest_delta = 1e-4\n"


def agreed(services: Server, **changes: Any) -> Study:
    """What the administrator approved."""
    content: dict[str, Any] = {
        "task": TaskRef(name=TASK, digest=task_digest(TASK)),
        "guest": None,
        "rounds": Rounds(count=4, quorum=3),
        "protection": Protection(mode="none"),
        "privacy": {"delta": 1e-4, "training": TRAINING},
    }
    return make_study(services, **content | changes)


@dataclass
class Target:
    """A running site, the server it talks to, and what of the attack is left on its ledger."""

    folder: SiteFolder
    services: Server
    engine: ScriptedEngine
    visit: Visit

    async def answer(self, study: Study, phase: Phase = Phase.UPLOAD, number: int = 1) -> str:
        """The code of the site's reply to work for this study."""
        name = message_id(RUN, number, phase, 0, SITE)
        self.visit.instruct(Instruction(name, RUN, number, phase, 0, study.digest(), 60.0, b""))
        return reply_from_proto(await self.visit.next("reply")).code

    def refusals(self) -> list[tuple[bytes, str]]:
        with opened(self.folder.root, key=load_keys(self.folder.keys).signing) as ledger:
            return [
                (entry.content.study_digest, entry.content.code)
                for entry in ledger.entries.all()
                if isinstance(entry.content, Refused)
            ]


@asynccontextmanager
async def target(tmp_path: Path, approved: Callable[[Server], Study], policy: str) -> AsyncIterator[Target]:
    folder, engine = SiteFolder(tmp_path / "site"), ScriptedEngine()
    async with AsyncExitStack() as stack:
        server = await start_server(Server(Authority(), tmp_path / "server"))
        stack.push_async_callback(server.stop)
        enrol(folder, server.services, server.address)
        add_others(server.services, tmp_path)
        folder.policy.write_text(policy)
        approve(folder, approved(server.services))
        await stack.enter_async_context(live(folder, engine))
        yield Target(folder, server.services, engine, await server.services.visit())


def approve(folder: SiteFolder, study: Study) -> None:
    state = open_state(folder.database)
    Datasets(state, lambda: 0.0).add(Dataset("visits", "tabular", folder.root, {}, 0.2, 500))
    signature = load_keys(folder.keys).sign_answer("approved", study.digest())
    Answers(state, lambda: 0.0).record(Answer(study, study.digest(), "approved", signature, "visits"))
    state.close()


async def test_what_was_agreed_is_done(tmp_path: Path) -> None:
    """What makes the refusals below mean something."""
    async with target(tmp_path, agreed, STRICT) as site:
        assert await site.answer(agreed(site.services)) == ""
        assert (len(site.engine.performed), site.refusals()) == (1, [])


WEAKER: dict[str, dict[str, Any]] = {
    "one more round": {"rounds": Rounds(count=5, quorum=3)},
    "less noise": {"privacy": {"delta": 1e-4, "training": TRAINING | {"epsilon": 2.1}}},
    "a larger clip": {"privacy": {"delta": 1e-4, "training": TRAINING | {"clip": 1.1}}},
    "a larger delta": {"privacy": {"delta": 1.1e-4, "training": TRAINING}},
    "no privacy": {"privacy": None},
    "another task": {"task": TaskRef(name=TASK, digest="0" * 64)},
    "fewer approvals": {"approvals": 2},
    "a later end": {"expires": "2999-01-01"},
    "the model to the operator": {"release": {"model": "operator"}},
}


@pytest.mark.parametrize("change", WEAKER.values(), ids=WEAKER)
async def test_a_study_that_differs_in_anything_is_another_study(tmp_path: Path, change: dict[str, Any]) -> None:
    async with target(tmp_path, agreed, POLICY) as site:
        asked = agreed(site.services, **change)
        assert await site.answer(asked) == "study_not_approved"
        assert site.engine.performed == []
        assert site.refusals() == [(asked.digest(), "study_not_approved")]


def fewer_sites(services: Server) -> Study:
    names = sorted({SITE, next(name for name in services.members if name != SITE)})
    sites = [Site(name=name, signing_key=services.members[name].signing_key.hex()) for name in names]
    return agreed(services, sites=sites, rounds=Rounds(count=4, quorum=2))


EVEN_IF_APPROVED: dict[str, tuple[Callable[[Server], Study], str]] = {
    "no privacy": (lambda services: agreed(services, privacy=None), "privacy_refused"),
    "more epsilon": (
        lambda services: agreed(services, privacy={"delta": 1e-4, "training": TRAINING | {"epsilon": 2.1}}),
        "privacy_refused",
    ),
    "a larger clip": (
        lambda services: agreed(services, privacy={"delta": 1e-4, "training": TRAINING | {"clip": 1.1}}),
        "privacy_refused",
    ),
    "a larger delta": (
        lambda services: agreed(services, privacy={"delta": 2e-4, "training": TRAINING}),
        "privacy_refused",
    ),
    "another task": (
        lambda services: agreed(services, task=TaskRef(name=TASK, digest="0" * 64)),
        "task_mismatch",
    ),
    "an expired study": (lambda services: agreed(services, expires="2020-01-01"), "study_expired"),
    "a smaller roster": (fewer_sites, "roster_too_small"),
    "too few approvals": (lambda services: agreed(services, approvals=3), "study_not_approved"),
}


@pytest.mark.parametrize(("approved", "code"), EVEN_IF_APPROVED.values(), ids=EVEN_IF_APPROVED)
async def test_the_policy_holds_even_if_the_administrator_approved_more(
    tmp_path: Path, approved: Callable[[Server], Study], code: str
) -> None:
    async with target(tmp_path, approved, STRICT) as site:
        asked = approved(site.services)
        assert await site.answer(asked) == code
        assert await site.answer(asked, number=2) == code
        assert site.engine.performed == []
        assert site.refusals() == [(asked.digest(), code)] * 2


async def test_work_that_is_asked_for_at_night_waits_for_the_day(tmp_path: Path) -> None:
    """``hours`` that are over when the test runs; what is begun is finished at any hour."""
    closed = 'hours = "00:00-00:01"\n' + STRICT
    async with target(tmp_path, agreed, closed) as site:
        assert await site.answer(agreed(site.services)) == "outside_hours"
        assert await site.answer(agreed(site.services), Phase.VOTE) == ""
        assert site.refusals() == [(agreed(site.services).digest(), "outside_hours")]
