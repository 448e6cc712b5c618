"""A ServerApp that tries the Grid, call by call, and writes down what came of it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

SIZES = {"small": 10, "beyond-one-message": 40_000, "twenty-megabytes": 5_242_880}
PULL_EVERY_S = 0.05


@app.main()
def main(grid: Grid, context: Context) -> None:
    found = {
        "nodes": [node.node_id for node in grid.get_nodes()],
        "about": [about(grid, group) for group in ("1", "2")],
        "trouble": trouble(grid),
        "large": {name: large(grid, size) for name, size in SIZES.items()},
        "lazy": lazy(grid),
        "partial": partial(grid),
        "later": about(grid, "3"),
        "run_id": str(grid.run.run_id),
    }
    Path("result.json").write_text(json.dumps(found), encoding="utf-8")


def about(grid: Grid, group: str) -> list[dict[str, object]]:
    """Push and pull, one by one, as a ServerApp does that wants each reply when it comes."""
    sent = [Message(RecordDict(), node, "query.about", group_id=group) for node in grid.get_node_ids()]
    waiting = set(grid.push_messages(sent))
    replies = []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.remove(reply.metadata.reply_to_message_id)
            replies.append(dict(reply.content["about"]) | {"src": str(reply.metadata.src_node_id)})
        time.sleep(PULL_EVERY_S)
    return replies


def trouble(grid: Grid) -> list[tuple[bool, int, str]]:
    sent = [Message(RecordDict(), node, "train.trouble") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(sent))
    return [(reply.has_content(), reply.error.code, reply.error.reason) for reply in replies]


def large(grid: Grid, size: int) -> list[bool]:
    values = np.arange(size, dtype=np.float32)
    content = RecordDict({"values": ArrayRecord([values])})
    sent = [Message(content, node, "query.negate") for node in grid.get_node_ids()]
    return [
        np.array_equal(reply.content["values"].to_numpy_ndarrays()[0], -values)
        for reply in grid.send_and_receive(sent, timeout=120)
    ]


def lazy(grid: Grid) -> list[float]:
    """A generator that changes one content between two messages."""
    nodes = list(grid.get_node_ids())

    def messages() -> Iterator[Message]:
        content = RecordDict()
        for number, node in enumerate(nodes):
            content["values"] = ArrayRecord([np.array([float(number)])])
            yield Message(content, node, "query.negate")

    replies = list(grid.send_and_receive(messages()))
    return [float(reply.content["values"].to_numpy_ndarrays()[0][0]) for reply in replies]


def partial(grid: Grid) -> tuple[int, bool]:
    """One node is held by the test: the others' replies come at the end of the time."""
    sent = [Message(RecordDict(), node, "query.wait") for node in grid.get_node_ids()]
    started = time.monotonic()
    replies = list(grid.send_and_receive(sent, timeout=5.0))
    return len(replies), time.monotonic() - started >= 5.0
