"""The ClientApp of the tests' apps: each action shows or does one thing."""

import os
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

SIZE = 50_000


def step(context: Context, name: str) -> None:
    """Write down that a step begins, and stay in it as long as the test holds it."""
    folder = Path(context.node_config["folder"])
    descriptor = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{name} {os.getpid()}\n".encode())
    os.close(descriptor)
    while (folder / name).exists():
        time.sleep(0.02)


# --- strategies ---


@app.train()
def train(message: Message, context: Context) -> Message:
    """Half of the way to a vector of this site's own; large enough to need the spool."""
    step(context, f"train-{message.content['config']['server-round']}")
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    target = np.random.default_rng(context.node_config["number"]).normal(size=SIZE)
    trained = weights + context.run_config["rate"] * (target - weights)
    metrics = MetricRecord({"num-examples": 10 + context.node_config["number"]})
    return Message(RecordDict({"arrays": ArrayRecord([trained]), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    step(context, f"evaluate-{message.content['config']['server-round']}")
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"num-examples": 10, "norm": float(np.linalg.norm(weights))})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


# --- single messages ---


@app.query("about")
def about(message: Message, context: Context) -> Message:
    """What the app can see of where it runs, and how often it was asked."""
    seen = context.state.metric_records.get("seen", MetricRecord({"messages": 0}))
    seen["messages"] = seen["messages"] + 1
    context.state["seen"] = seen
    answer = {
        "messages": seen["messages"],
        "node": str(context.node_config["number"]),
        "text": context.run_config["text"],
        "rate": context.run_config["rate"],
        "flag": context.run_config["flag"],
        "run_id": str(context.run_id),
        "node_id": str(context.node_id),
        "group_id": message.metadata.group_id,
    }
    return Message(RecordDict({"about": ConfigRecord(answer)}), reply_to=message)


@app.query("negate")
def negate(message: Message, context: Context) -> Message:
    """All that came, negated: so the way there and the way back are seen."""
    arrays = {name: ArrayRecord([-a for a in r.to_numpy_ndarrays()]) for name, r in message.content.items()}
    return Message(RecordDict(arrays), reply_to=message)


@app.train("trouble")
def trouble(message: Message, context: Context) -> Message:
    """Fails as real code does, with what it worked on in the text."""
    context.state["spoiled"] = ConfigRecord({"state": context.node_config["secret"]})
    raise RuntimeError(f"cannot read the record of {context.node_config['secret']}")


@app.query("wait")
def wait(message: Message, context: Context) -> Message:
    step(context, "wait")
    return Message(RecordDict(), reply_to=message)
