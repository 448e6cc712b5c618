"""The stock Flower deployment that we measure against says when it fails, and leaves nothing behind."""

from pathlib import Path

import psutil
import pytest

from bench.flower_peer import PEER_APP, PeerError, StockFlower
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_an_app_that_fails_is_reported_and_every_process_ends(tmp_path: Path) -> None:
    before = descendants()
    with StockFlower(sites=2) as peer:
        assert descendants() > before
        config = {"num-server-rounds": 1, "result-file": str(tmp_path / "no-such-folder" / "result")}
        with pytest.raises(PeerError, match="finished:failed"):
            peer.run(PEER_APP, PATIENCE_S, config)
    assert descendants() <= before
