"""A site, or whoever has some certificate, against those who watch the server.

A monitoring system keeps every series that it ever saw. Whoever could make up labels could fill it, or put into it what
must not be there; and whoever could make the daemon compute pages could keep it from its work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from quorate.rounds.instruction import MessageId, Phase, Reply
from quorate.v1 import rounds_pb2
from tests.attacks.server_kit import RUN, Consortium, open_consortium, refusal, until

CANARIES = ("id4711z", "muller", "east", "malignancy", RUN)


@pytest.fixture
async def consortium(tmp_path: Path) -> AsyncIterator[Consortium]:
    async with open_consortium(tmp_path / "server") as consortium:
        yield consortium


def page(consortium: Consortium) -> str:
    return generate_latest(consortium.server.prometheus).decode()


def series(consortium: Consortium) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    families = text_string_to_metric_families(page(consortium))
    return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}


def value(consortium: Consortium, name: str, **labels: str) -> float:
    return consortium.server.prometheus.get_sample_value(f"quorate_server_{name}", labels) or 0.0


async def test_nothing_that_a_site_can_say_becomes_a_series_or_a_label(consortium: Consortium) -> None:
    before = series(consortium)
    sites = [consortium.site(f"east-id4711z-{number}") for number in range(5)]
    for number, site in enumerate(sites):
        assert (await refusal(site.connect(version=f"bed-12-muller-{number}"))).code == "version_refused"
    await asyncio.to_thread(consortium.server._count_sites)
    assert value(consortium, "site_versions", age="unknown") == 5
    for number, site in enumerate(sites):
        await site.connect()
        for made_up in range(20):
            message = consortium.ask(site.name, Phase.UPLOAD, made_up)
            await site.reply(Reply(message, code=f"patient_id4711z_{number}_{made_up}"))
            await site.reply(Reply(MessageId(bytes([made_up] * 32)), code="muller"))
    await until(lambda: value(consortium, "updates_refused_total", code="message_unknown") == 100)
    await until(lambda: value(consortium, "site_versions", age="current") == 5)

    assert series(consortium) == before
    assert [canary for canary in CANARIES if canary in page(consortium)] == []


async def test_calls_that_nobody_may_make_are_counted_by_a_code_of_ours(consortium: Consortium) -> None:
    before = series(consortium)
    site = consortium.site("east-id4711z")
    for number in range(30):
        await refusal(site.channel.unary_unary(f"/quorate.v1.Operator/Patientid4711zx{number}")(b"muller"))
    await refusal(site.stub.OpenUpload(rounds_pb2.OpenUploadRequest(message_id=b"id4711z")))

    codes = {
        dict(labels)["code"]: value(consortium, "calls_refused_total", **dict(labels))
        for name, labels in before
        if name == "quorate_server_calls_refused_total"
    }
    assert {code: count for code, count in codes.items() if count} == {"wrong_role": 30, "bad_frame": 1}
    assert series(consortium) == before
    assert [canary for canary in CANARIES if canary in page(consortium)] == []


async def test_two_hundred_sites_make_no_more_series_than_one(consortium: Consortium) -> None:
    before = series(consortium)
    for number in range(200):
        await consortium.server.sessions.attach(consortium.enrol(f"site-{number}")[0].name, 1, f"0.1.{number}")
    await asyncio.to_thread(consortium.server._count_sites)

    assert value(consortium, "sites", state="online") == 200
    assert value(consortium, "site_versions", age="current") == 200
    assert series(consortium) == before
    assert len(before) < 1000
