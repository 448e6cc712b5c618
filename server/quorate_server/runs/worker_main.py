"""The process of one run: ``python -m quorate_server.runs.worker_main FD``.

It is spawned by the daemon, never forked, and talks to it over one inherited socket. It runs the rounds
of a study, or a guest app. When it dies the daemon starts another, which goes on from what was committed.
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import structlog

from quorate.errors import QuorateError, RunWorkerError
from quorate.identity import RunId, SiteName
from quorate.rounds.instruction import MessageId
from quorate.rounds.run import RunState
from quorate.rounds.spool import Spool
from quorate.study.study import Study
from quorate.wire.refusal import error_to_text
from quorate_server.rounds.pipe import Verb, receive_note
from quorate_server.rounds.pipe_exchange import PipeExchange
from quorate_server.rounds.progress import StudyProgress
from quorate_server.rounds.sums.loop import SumLoop

log = structlog.get_logger()


def main() -> None:
    """Read the order, run it, report the end."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    structlog.configure(processors=[structlog.processors.TimeStamper(), structlog.processors.KeyValueRenderer()])
    begin = receive_note(sock)
    if begin is None:
        return
    order = json.loads(begin.payload)
    exchange = PipeExchange(sock, Spool(Path(order["spool"])))
    exchange.start()
    try:
        _run(order, exchange)
    except QuorateError as error:
        log.warning("run paused", run=order["run"], code=error.code, reason=str(error))
        exchange.note(Verb.DONE, {"state": RunState.PAUSED.value, "reason": error_to_text(error)})
    except Exception:  # the text stays here: a guest app's exception can hold anything
        logging.getLogger(__name__).exception("the run's app failed")
        failure = RunWorkerError(
            "The run's app raised an exception",
            action=f"Read {Path.cwd() / 'worker.log'} on the server; correct the app and start a new run",
        )
        exchange.note(Verb.DONE, {"state": RunState.FAILED.value, "reason": error_to_text(failure)})
    else:
        exchange.note(Verb.DONE, {"state": RunState.COMPLETED.value, "reason": None})
    sock.shutdown(socket.SHUT_WR)


def _run(order: dict[str, Any], exchange: PipeExchange) -> None:
    study = Study.from_canonical(base64.b64decode(order["study"]))
    progress = StudyProgress.model_validate_json(order["progress"]) if order["progress"] else StudyProgress()
    attempts = {(key[0], key[1], SiteName(key[2])): value for key, value in order["attempts"]}
    forgiven = {MessageId(bytes.fromhex(name)) for name in order["forgiven"]}
    run = RunId(order["run"])
    if study.guest is None:
        SumLoop(run, study, exchange, progress, attempts).run()
    else:
        from quorate_server.flower.guest import run_guest  # flwr takes a second to import, and is for guests only

        run_guest(run, study, exchange, forgiven)


if __name__ == "__main__":
    main()
