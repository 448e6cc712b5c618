"""Our own ServerApp, for stock Flower (a SuperLink with SuperNodes, or Flower's simulation): a study's rounds."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from quorate.identity import RunId
from quorate.study.study import Study
from quorate_server.flower.exchange import FlowerExchange
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sums.loop import SumLoop

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The study's canonical file and the result folder come from the run's configuration."""
    loop_on(grid, context).run()


def loop_on(grid: Grid, context: Context) -> SumLoop:
    """The rounds of the study that the run's configuration names."""
    config = context.run_config
    study = Study.from_canonical(Path(str(config["study"])).read_bytes())
    exchange = FlowerExchange(grid, study, Path(str(config["output"])))
    return SumLoop(RunId(f"flower-{context.run_id}"), study, exchange, StudyProgress(), {})
