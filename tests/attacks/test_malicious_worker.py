"""The process of a run, which may run a guest app, against the server's daemon.

It runs with the rights of the server's user, so what it must not do is told to its administrator and not enforced. But
what it says on the pipe is checked: a mistake there must not reach other studies, nor outlive the run.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quorate.rounds.run import RunState
from quorate.study.study import Study
from quorate_server.daemon import Server
from tests.attacks.server_kit import PATIENCE_S, Consortium, HandSite, open_consortium
from tests.server.door import a_study

ATTACKS = ("progress that nobody can read", "another study's work", "a state that is none", "no JSON")


def hostile_study(site: HandSite, number: int, attack: str, victim: Study) -> Study:
    config = {"attack": attack, "study": victim.digest().hex()}
    return a_study(
        site.keys,
        name=f"hostile-{number}",
        task={"name": "flower:hostile_app:app", "digest": "ab" * 32},
        guest={"server_app": "hostile_app:app", "run_config": config},
        release={"model": "operator"},
    )


async def outcome(consortium: Consortium, study: Study) -> RunState:
    view = await consortium.server.runs.start(study)
    async with asyncio.timeout(2 * PATIENCE_S):
        async for news in consortium.server.runs.changes(view.run):
            if news.state is not RunState.RUNNING:
                return news.state
    raise AssertionError("the run does not end")


async def test_what_a_runs_process_says_wrong_ends_its_run_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress was stored before it was read: a server could not be started again with it. An instruction could carry
    another study's digest, and a site that had approved that study would have worked on it for this run."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    async with open_consortium(tmp_path / "server", 'guest_apps = ["hostile_app:app"]\n') as consortium:
        east = consortium.site("east")
        await east.connect()
        victim = a_study(east.keys, name="victim")
        studies = [hostile_study(east, number, attack, victim) for number, attack in enumerate(ATTACKS)]
        for study in (victim, *studies):
            consortium.server.registry.publish(study)
        found = await asyncio.gather(*(outcome(consortium, study) for study in studies))
        assert found == [RunState.FAILED] * len(ATTACKS)
        assert consortium.server.mailbox.owed_by(east.name) == []
        again = Server(consortium.config)
        await again.runs.recover()
        assert len(again.runs.list()) == len(ATTACKS)
        again.journal.close()
