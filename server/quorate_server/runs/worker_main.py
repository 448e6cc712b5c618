"""The process of one run: ``python -m quorate_server.runs.worker_main FD``.

It is spawned by the daemon, never forked, and talks to it over one inherited socket. It runs the rounds
of a study, or a guest app. When it dies the daemon starts another, which goes on from what was committed.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import structlog

from quorate.rounds.spool import Spool
from quorate_server.rounds.order import Order, tell_end
from quorate_server.rounds.pipe import receive_note
from quorate_server.rounds.pipe_exchange import PipeExchange
from quorate_server.rounds.sums.loop import SumLoop


def main() -> None:
    """Read the order, run it, report the end."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    structlog.configure(processors=[structlog.processors.TimeStamper(), structlog.processors.KeyValueRenderer()])
    begin = receive_note(sock)
    if begin is None:
        return
    order = Order.from_json(begin.payload)
    exchange = PipeExchange(sock, Spool(Path(order.spool)))
    exchange.start()
    tell_end(exchange, order.run, lambda: _run(order, exchange), f"{Path.cwd() / 'worker.log'} on the server")
    sock.shutdown(socket.SHUT_WR)


def _run(order: Order, exchange: PipeExchange) -> None:
    if order.study.guest is None:
        SumLoop(order.run, order.study, exchange, order.standing, order.attempts).run()
    else:
        from quorate_server.flower.guest import run_guest  # flwr takes a second to import, and is for guests only

        run_guest(order.run, order.study, exchange, order.forgiven)


if __name__ == "__main__":
    main()
