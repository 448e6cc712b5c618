"""Sites of other versions at the server's door: the series before works, what is further away is told who must act."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import FrameError, VersionRefusedError
from quorate.rounds.instruction import Reply
from quorate.versions import Age
from quorate.wire.messages import reply_to_proto
from quorate_server.runs.sessions import Sessions
from tests.server.services.test_rounds_service import EAST, WEST, open_server

RELEASED = ("0.0", "0.1", "0.2")


async def test_a_site_of_the_series_before_does_its_work(tmp_path: Path) -> None:
    async with open_server(tmp_path, series=RELEASED) as server:
        owed = server.ask(EAST)
        stream = await server.client("east").connect(version="0.1.7")
        assert (await stream.hear()).instruction.message_id == owed
        await stream.say(reply=reply_to_proto(Reply(owed, body=b"work")))
        assert (await stream.hear()).ack.message_ids == [owed]
        assert (server.sessions.version(EAST), server.sessions.age(EAST)) == ("0.1.7", Age.PREVIOUS)


@pytest.mark.parametrize(
    ("version", "who"),
    [
        ("0.0.9", "Install a version of 0.2"),
        ("0.3.0", "Have the server upgraded first"),
        ("", "Install"),
        ("x", "Install"),
    ],
)
async def test_a_site_that_is_too_far_away_gets_nothing_and_is_told_why(tmp_path: Path, version: str, who: str) -> None:
    async with open_server(tmp_path, series=RELEASED) as server:
        server.ask(EAST)
        east = server.client("east")
        with pytest.raises(VersionRefusedError, match=who) as refused:
            await east.connect(version=version)
        assert str(refused.value).count("\n") == 0
        assert server.sessions.state(EAST) == "offline"
        assert server.sessions.version(EAST) == version  # for the operator to see
        assert server.sessions.age(EAST) is Age.UNKNOWN
        await east.connect(session=1, version="0.2.0")  # its number was not used up


async def test_what_a_site_ran_last_is_known_after_a_restart(tmp_path: Path) -> None:
    async with open_server(tmp_path, series=RELEASED) as server:
        await server.client("east").connect(version="0.1.7")
        again = Sessions(server.journal, 6.0, series=RELEASED)
        assert (again.version(EAST), again.age(EAST)) == ("0.1.7", Age.PREVIOUS)
        assert again.last_seen(EAST) > 0
        assert (again.version(WEST), again.age(WEST), again.last_seen(WEST)) == ("", Age.UNKNOWN, 0.0)
        assert again.state(EAST) == "offline"


async def test_what_steers_a_terminal_is_no_version(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        with pytest.raises(FrameError, match="malformed"):
            await server.client("east").connect(version="0.1.0\x1b[2J")
        assert server.sessions.version(EAST) == ""
