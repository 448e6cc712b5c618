"""Our own apps on a Grid that is not ours: here the smallest one that there can be, in this process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from quorate.blobs import Blob, blob_id
from quorate.errors import QuorumMissingError
from quorate.exchange import Instruction, Phase, Reply, message_id
from quorate.identity import RunId, SiteName
from quorate.messages import instruction_from_bytes, reply_to_bytes
from quorate.study import Study
from quorate_client import flower as client
from quorate_server import flower as server
from quorate_server.flower import FlowerExchange
from quorate_server.study_loop import Arrived, Presence
from tests.compat.consortium_kit import SITES, Consortium
from tests.compat.malignancy import STUDY, Outcome, assert_same, outcome
from tests.compat.reference import RUN_ID, InProcessGrid

NODES = dict(zip((30, 10, 20), SITES, strict=True))
"""Node numbers, in an order that is not the sites'."""


class SiteGrid(InProcessGrid):
    """A node for each site file, with our ClientApp."""

    def __init__(self, prepared: Path, nodes: dict[int, str]) -> None:
        super().__init__(
            client.app,
            {node: {client.SITE_KEY: str(prepared / "sites" / f"{site}.json")} for node, site in nodes.items()},
            {},
        )


@pytest.fixture
def study(prepared: Path) -> Study:
    """Short of patience: who is not there at once is not waited for."""
    study = Study.from_canonical((prepared / "study.json").read_bytes())
    return study.model_copy(update={"rounds": study.rounds.model_copy(update={"quorum": 2, "absent_grace_s": 0.0})})


def run(grid: InProcessGrid, prepared: Path) -> None:
    config = {"study": str(prepared / "study.json"), "output": str(prepared)}
    server.app(grid, Context(RUN_ID, 1, {}, RecordDict(), config))


# --- whole runs ---


@pytest.mark.integration
def test_two_runs_on_our_own_transport_give_the_same_model(
    consortium: Consortium, own_transport: Outcome, tables: dict[str, Path]
) -> None:
    """Without this, the comparisons with it say nothing."""
    run = consortium.start(STUDY)
    view = consortium.await_end(run)
    assert all(result.contributed == SITES for result in view.results)
    assert_same(own_transport, outcome(consortium.folder(run) / "model.npz", tables))


@pytest.mark.integration
def test_a_study_on_any_grid_gives_the_model_of_our_own_transport(
    own_transport: Outcome, prepared: Path, tables: dict[str, Path]
) -> None:
    run(SiteGrid(prepared, NODES), prepared)
    assert_same(own_transport, outcome(prepared / "model.npz", tables))


def test_a_run_without_a_quorum_ends_with_the_reason(prepared: Path) -> None:
    class Refusing(SiteGrid):
        """All nodes but one fail once they were introduced."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [
                Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "text of an exception"), reply_to=self.asked[name])
                for name in message_ids
                if self.asked[name].metadata.dst_node_id != 10
            ]

    grid = Refusing(prepared, NODES)
    introduce = grid.send_and_receive
    grid.send_and_receive = lambda messages, timeout=None: [  # type: ignore[method-assign]
        grid.replies[name] for name in grid.push_messages(messages)
    ]
    assert introduce is not None
    with pytest.raises(QuorumMissingError, match="task_failed") as caught:
        run(grid, prepared)
    assert "text of an exception" not in str(caught.value)
