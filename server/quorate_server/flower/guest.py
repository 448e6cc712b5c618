"""A guest: somebody else's Flower ServerApp, on our Grid."""

from __future__ import annotations

import importlib
from collections.abc import Set as AbstractSet

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from quorate.errors import (
    StudyError,
)
from quorate.identity import RunId
from quorate.rounds.instruction import MessageId
from quorate.study.study import Study
from quorate_server.flower.grid import QuorateGrid
from quorate_server.rounds.pipe_exchange import PipeExchange


def run_guest(run: RunId, study: Study, exchange: PipeExchange, forgiven: AbstractSet[MessageId]) -> None:
    """Run a study's guest in this process, to its end."""
    if study.guest is None:
        raise StudyError("The study names no Flower app")
    grid = QuorateGrid(run, study, exchange, forgiven)
    app = _load(study.guest.server_app)
    grid.listen()
    run_config = dict(study.guest.run_config)
    app(grid, Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=run_config))


def _load(reference: str) -> ServerApp:
    module, _, attribute = reference.partition(":")
    loaded = getattr(importlib.import_module(module), attribute)
    if not isinstance(loaded, ServerApp):
        raise StudyError(f"{reference} is not a Flower ServerApp")
    return loaded
