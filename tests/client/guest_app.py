"""A stock Flower ClientApp, written as in Flower's quickstart, that counts its messages in its context."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    seen = context.state.metric_records.get("seen", MetricRecord({"messages": 0}))
    seen["messages"] = int(seen["messages"]) + 1  # type: ignore[arg-type]  # a number, as we put it there
    context.state["seen"] = seen
    arrays = [array + 1 for array in message.content.array_records["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 10, "seen": seen["messages"], "rate": float(context.run_config["rate"])})
    if context.node_config.get("trouble"):
        raise RuntimeError("the record of canary-4711-patient-name could not be read")
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)
