"""A line between a site and the server that a test can make slow, or have keep what passes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Listens on ``port`` until it is closed. ``sent_bytes`` counts what went from the site to the server; ``kept`` is
    what passed in either direction, if it was to be kept."""

    PIECE_BYTES = 16 * 1024

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._rate = 0.0
        self._ends: list[socket.socket] = []
        self._closed = threading.Event()
        self.sent_bytes = 0
        self.kept = bytearray()
        self._keeps = False
        threading.Thread(target=self._accept, daemon=True).start()

    def slow_down(self, bytes_per_s: float) -> None:
        """From the site to the server."""
        self._rate = bytes_per_s

    def keep(self) -> None:
        """What passes from now on, each connection and direction in one piece where it came so."""
        self._keeps = True

    def full_speed(self) -> None:
        self._rate = 0.0

    def close(self) -> None:
        self._closed.set()
        self._listener.close()
        for end in self._ends:
            _hang_up(end)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                site, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                site.close()
                continue
            self._ends += [site, server]
            threading.Thread(target=self._pump, args=(site, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, site, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        try:
            while piece := source.recv(self.PIECE_BYTES):
                if upwards and self._rate:
                    self._closed.wait(len(piece) / self._rate)
                sink.sendall(piece)
                self.sent_bytes += len(piece) if upwards else 0
                if self._keeps:
                    self.kept += piece
        except OSError:
            pass
        finally:
            _hang_up(source)
            _hang_up(sink)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def relay(target_port: int) -> Iterator[Relay]:
    line = Relay(target_port)
    try:
        yield line
    finally:
        line.close()
