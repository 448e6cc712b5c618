"""What should come out: the same apps in this process, without any transport."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from quorate.study.study import Study
from quorate_server.flower.grid import node_id

RUN_ID = 7


class InProcessGrid(Grid):
    """Calls the ClientApp when a message is pushed. ``nodes`` gives each node's configuration."""

    def __init__(self, app: ClientApp, nodes: Mapping[int, dict[str, Any]], run_config: dict[str, Any]) -> None:
        self._app = app
        self._run = Run.create_empty(RUN_ID)
        self._contexts = {
            node: Context(RUN_ID, node, dict(config), RecordDict(), dict(run_config)) for node, config in nodes.items()
        }
        self._names = itertools.count()
        self._replies: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, RUN_ID, 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            name = str(next(self._names))
            message.metadata.__dict__["_message_id"] = name
            self._replies[name] = self.answer(message)
            names.append(name)
        return names

    def answer(self, message: Message) -> Message:
        return self._app(message, self._contexts[message.metadata.dst_node_id])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = self.pull_messages(self.push_messages(messages))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def run_here(server: ServerApp, client: ClientApp, study: Study, node_configs: Mapping[str, dict[str, Any]]) -> None:
    """Run a guest study's apps; what they write is in the working directory afterwards."""
    assert study.guest is not None
    nodes = {node_id(study, site): node_configs[site] for site in study.site_names}
    run_config = dict(study.guest.run_config)
    grid = InProcessGrid(client, nodes, run_config)
    server(grid, Context(RUN_ID, 1, {}, RecordDict(), run_config))
