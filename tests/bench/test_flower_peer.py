"""The stock Flower deployment that we measure against works and leaves nothing behind."""

from pathlib import Path

import psutil
import pytest

from bench.flower_peer import PEER_APP, PeerError, StockFlower, measure

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_a_round_of_the_small_app_is_timed_and_every_process_ends() -> None:
    before = descendants()
    measured = measure(sites=2, rounds=1, timeout_s=180)
    assert len(measured.round_s) == 1
    assert 0 < measured.round_s[0] < 120
    assert measured.cpu_s > 0
    assert descendants() <= before


def test_an_app_that_fails_is_reported_and_every_process_ends(tmp_path: Path) -> None:
    before = descendants()
    with StockFlower(sites=2) as peer:
        assert descendants() > before
        with pytest.raises(PeerError, match="finished:failed"):
            peer.run(
                PEER_APP, 180, {"num-server-rounds": 1, "result-file": str(tmp_path / "no-such-folder" / "result")}
            )
    assert descendants() <= before
