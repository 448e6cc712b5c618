"""flower_quickstart: a Flower / NumPy app."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_quickstart.task import accuracy, load_data, loss
from flower_quickstart.task import train as train_fn

# Flower ClientApp
app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    # Load the model with the received weights
    model = msg.content["arrays"].to_numpy_ndarrays()

    # Load the data
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    trainset, _ = load_data(partition_id, num_partitions)

    # Call the training function
    model, train_loss = train_fn(
        model,
        trainset,
        context.run_config["local-epochs"],
        msg.content["config"]["lr"],
        msg.content["config"].get("proximal-mu", 0.0),
    )

    # Construct and return reply Message
    metrics = {"train_loss": train_loss, "num-examples": len(trainset[1])}
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Evaluate the model on local data."""
    # Load the model with the received weights
    model = msg.content["arrays"].to_numpy_ndarrays()

    # Load the data
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    _, testset = load_data(partition_id, num_partitions)

    # Construct and return reply Message
    metrics = {
        "eval_loss": loss(model, testset),
        "eval_acc": accuracy(model, testset),
        "num-examples": len(testset[1]),
    }
    content = RecordDict({"metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)
