"""Who holds an operator's certificate, against the machine that the server runs on and those who look at it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from quorate.errors import StudyError
from quorate.study.study import MAX_CANONICAL_BYTES, Study
from quorate.v1 import operator_pb2, rounds_pb2
from tests.attacks.server_kit import PATIENCE_S, Consortium, HandSite, open_consortium, refusal
from tests.server.door import a_study


@pytest.fixture
async def consortium(tmp_path: Path) -> AsyncIterator[Consortium]:
    async with open_consortium(tmp_path / "server", "most_runs = 1\n") as consortium:
        yield consortium


@pytest.fixture
def sites(consortium: Consortium) -> list[HandSite]:
    return [consortium.site(name) for name in ("east", "north", "west")]


def study_of(sites: list[HandSite], name: str, note: str = "") -> Study:
    task = {"name": "tabular-classifier", "digest": "ab" * 32, "parameters": {"note": note}}
    return a_study(*(site.keys for site in sites), name=name, task=task)


def publish(operator: Any, canonical: bytes) -> Any:
    return operator.PublishStudy(operator_pb2.PublishStudyRequest(canonical=canonical), timeout=PATIENCE_S)


async def test_large_studies_do_not_make_the_others_unreadable(consortium: Consortium, sites: list[HandSite]) -> None:
    """Two of 2.5 MB made lists that no message could carry: no site could read or answer any study again."""
    operator = consortium.operator()
    too_large = study_of(sites, "flood", "x" * MAX_CANONICAL_BYTES)
    assert (await refusal(publish(operator, too_large.canonical()))).code == StudyError.code
    for number in range(5):
        await publish(operator, study_of(sites, f"flood-{number}", "x" * (MAX_CANONICAL_BYTES - 2000)).canonical())
    await publish(operator, study_of(sites, "useful").canonical())
    listed = await operator.ListStudies(operator_pb2.ListStudiesRequest(), timeout=PATIENCE_S)
    offered = await sites[0].stub.ListStudies(rounds_pb2.SiteStudiesRequest(), timeout=PATIENCE_S)
    for studies in (listed.studies, offered.studies):
        assert json.loads(studies[-1].canonical)["name"] == "useful"
    oldest = await operator.GetStudy(operator_pb2.GetStudyRequest(study="flood-0"), timeout=PATIENCE_S)
    assert json.loads(oldest.canonical)["name"] == "flood-0"


@pytest.mark.parametrize(
    "bomb",
    [b"[" * 200_000, b'{"a":' * 500 + b"1" + b"}" * 500, b"9" * 5000, b"1e999", b"NaN", b'"\\ud800"', b'{"a":1,"a":2}'],
    ids=["open lists", "nested", "digits", "infinite", "not a number", "half a character", "twice"],
)
async def test_a_study_that_is_a_bomb_is_refused_and_the_server_goes_on(
    consortium: Consortium, sites: list[HandSite], bomb: bytes
) -> None:
    operator = consortium.operator()
    canonical = study_of(sites, "bomb", "fuse").canonical()
    assert (await refusal(publish(operator, canonical.replace(b'"fuse"', bomb)))).code == StudyError.code
    await publish(operator, canonical)


async def test_a_revoked_operator_does_not_go_on_watching(consortium: Consortium, sites: list[HandSite]) -> None:
    """A watch is one call that lasts as long as the run."""
    operator = consortium.operator()
    await publish(operator, study_of(sites, "watched").canonical())
    view = await operator.StartRun(operator_pb2.StartRunRequest(study="watched"), timeout=PATIENCE_S)
    watch = operator.WatchRun(operator_pb2.GetRunRequest(run=view.run), timeout=PATIENCE_S)
    assert (await watch.read()).run == view.run
    consortium.server.registry.revoke_operator("mallory")
    await consortium.server.runs.stop(view.run)

    async def read_on() -> None:
        while await watch.read() is not grpc.aio.EOF:
            pass

    assert (await refusal(read_on())).code == "certificate_revoked"


async def test_an_operator_cannot_start_processes_without_end(consortium: Consortium, sites: list[HandSite]) -> None:
    operator = consortium.operator()
    for name in ("first", "second"):
        await publish(operator, study_of(sites, name).canonical())
    view = await operator.StartRun(operator_pb2.StartRunRequest(study="first"), timeout=PATIENCE_S)
    second = operator_pb2.StartRunRequest(study="second")
    assert (await refusal(operator.StartRun(second, timeout=PATIENCE_S))).code == "wrong_state"
    await operator.PauseRun(operator_pb2.GetRunRequest(run=view.run), timeout=PATIENCE_S)
    await operator.StartRun(second, timeout=PATIENCE_S)
    resumed = operator.ResumeRun(operator_pb2.GetRunRequest(run=view.run), timeout=PATIENCE_S)
    assert (await refusal(resumed)).code == "wrong_state"
