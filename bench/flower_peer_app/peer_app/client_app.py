"""Training that adds one, evaluation that measures a norm: nothing but the round is left to measure."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"].to_numpy_ndarrays()
    step = np.float32(message.content["config"]["step"])
    metrics = MetricRecord({"num-examples": 100})
    content = RecordDict({"arrays": ArrayRecord([array + step for array in arrays]), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"num-examples": 100, "norm": float(np.linalg.norm(arrays[0]))})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
