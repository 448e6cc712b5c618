"""Which runs a server has asked for on a connection."""

from __future__ import annotations

import pytest

from quorate.errors import FrameError
from quorate.identity import RunId
from quorate_client.connection.current import MAX_RUNS_ASKED, CurrentConnection


def test_a_server_that_names_runs_without_end_is_refused() -> None:
    current = CurrentConnection()
    for number in range(MAX_RUNS_ASKED):
        current.asked(RunId(f"run-{number}"))
    current.asked(RunId("run-0"))
    with pytest.raises(FrameError):
        current.asked(RunId("one more"))
    current.use(None)
    current.asked(RunId("one more"))
