"""The process of one run: ``python -m quorate_server.run_worker FD``.

It is spawned by the daemon, never forked, and talks to it over one inherited socket. It runs a Flower ServerApp: the
study loop's, or a guest app. When it dies the daemon starts another, which goes on from what was committed.
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

from quorate.blobs import Spool
from quorate.errors import QuorateError, RunWorkerError
from quorate.exchange import MessageId
from quorate.identity import RunId, SiteName
from quorate.runs import RunState
from quorate.study import Study
from quorate_server import reasons
from quorate_server.pipe import Verb, receive_note
from quorate_server.pipe_exchange import PipeExchange
from quorate_server.progress import StudyProgress

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
        exchange.note(Verb.DONE, {"state": RunState.PAUSED.value, "reason": reasons.to_text(error)})
    except Exception:  # the text stays here: a guest app's exception can hold anything
        logging.getLogger(__name__).exception("the run's app failed")
        failure = RunWorkerError(
            "The run's app raised an exception",
            action=f"Read {Path.cwd() / 'worker.log'} on the server; correct the app and start a new run",
        )
        exchange.note(Verb.DONE, {"state": RunState.FAILED.value, "reason": reasons.to_text(failure)})
    else:
        exchange.note(Verb.DONE, {"state": RunState.COMPLETED.value, "reason": None})
    sock.shutdown(socket.SHUT_WR)


def _run(order: dict[str, Any], exchange: PipeExchange) -> None:
    from quorate_server import flower  # takes a second to import: only where it is needed

    study = Study.from_canonical(base64.b64decode(order["study"]))
    progress = StudyProgress.model_validate_json(order["progress"]) if order["progress"] else StudyProgress()
    attempts = {(key[0], key[1], SiteName(key[2])): value for key, value in order["attempts"]}
    forgiven = {MessageId(bytes.fromhex(name)) for name in order["forgiven"]}
    flower.run_app(RunId(order["run"]), study, exchange, progress, attempts, forgiven)


if __name__ == "__main__":
    main()
