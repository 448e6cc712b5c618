"""One run in the attested machine: ``python -m quorate_server.aggregator.run FD ATTESTER DETAIL``.

A process for each, spawned by ``quorate-aggregator`` with the server's connection; its keys die with it.
"""

from __future__ import annotations

import socket
import sys
import threading

import structlog

from quorate.attestation.binding import NONCE_BYTES, binding
from quorate.attestation.sealing import EnclaveKeys
from quorate.errors import QuorateError
from quorate.process.frames import find_dead_paths
from quorate.rounds.blobs import Blob
from quorate.wire.attestation_messages import answer_to_proto
from quorate_server.aggregator.attesters import Attester
from quorate_server.aggregator.attesters.choice import attester_of
from quorate_server.aggregator.remote_store import RemoteStore
from quorate_server.aggregator.sealed_exchange import SealedExchange
from quorate_server.logs import configure_logging
from quorate_server.rounds.order import Order, tell_end
from quorate_server.rounds.pipe import Note, Verb, receive_note
from quorate_server.rounds.pipe_exchange import PipeExchange
from quorate_server.rounds.sums.loop import SumLoop

log = structlog.get_logger()

ORDER_S = 60.0
"""Who connects and says nothing keeps a place that another run may need."""


class Witness:
    """Shows evidence of this machine, bound to its keys for one run."""

    def __init__(self, order: Order, keys: EnclaveKeys, attester: Attester) -> None:
        self._run = order.run
        self._study = order.study.canonical()
        self._identity = keys.identity
        self._attester = attester
        self._one_at_a_time = threading.Lock()

    def answer(self, question: bytes) -> bytes | None:
        """What a site is told, behind its nonce; None where the machine makes no evidence now.

        Args:
            question: The site's nonce, and the key that the server's door shows, which the site sees for itself.
        """
        nonce, door_key = question[:NONCE_BYTES], question[NONCE_BYTES:]
        try:
            bound = binding(
                nonce=nonce, public_key=self._identity.public_key, tls_spki=door_key, study=self._study, run=self._run
            )
            with self._one_at_a_time:
                evidence = self._attester.attest(bound)
        except QuorateError as error:
            log.error("no evidence", run=self._run, code=error.code, reason=str(error))
            return None
        return nonce + answer_to_proto(evidence, self._identity).SerializeToString()


class Connection(PipeExchange):
    """The connection to the server: an exchange whose spool is at its other end."""

    def __init__(self, sock: socket.socket, witness: Witness) -> None:
        self._remote = RemoteStore(self.post)
        super().__init__(sock, self._remote, heed=self._heed_note)
        self._witness = witness

    def read_at(self, blob: Blob, start: int, length: int) -> bytes:
        return self._remote.read_at(blob, start, length)

    def _heed_note(self, note: Note) -> bool:
        if note.verb is not Verb.ATTEST:
            return self._remote.heed(note)
        # Hardware takes its time for a quote, and the listener must not.
        threading.Thread(target=self._attest, args=(note.payload,), daemon=True, name="attest").start()
        return True

    def _attest(self, question: bytes) -> None:
        answer = self._witness.answer(question)
        if answer is not None:
            self.post(Note(Verb.ATTESTED, answer))


def main() -> None:
    """Read the order, run it, report the end."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    find_dead_paths(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages wait 40 ms for each other otherwise
    sock.settimeout(ORDER_S)
    configure_logging("text", "info")
    attester = attester_of(*sys.argv[2:])
    try:
        begin = receive_note(sock)
    except TimeoutError:
        log.warning("whoever connected gave no order")
        return
    if begin is None or begin.verb is not Verb.BEGIN:
        return
    sock.settimeout(None)
    order = Order.from_json(begin.payload)
    keys = EnclaveKeys()
    connection = Connection(sock, Witness(order, keys, attester))
    exchange = SealedExchange(order.run, order.study, connection, keys)
    connection.start()
    log.info("run begins", run=order.run, study=order.study.name)
    loop = SumLoop(order.run, order.study, exchange, order.standing, order.attempts)
    tell_end(connection, order.run, loop.run, "the aggregator's log")
    sock.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
