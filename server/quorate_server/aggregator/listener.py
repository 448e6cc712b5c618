"""Waits for the server and gives each run that it brings a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import structlog

log = structlog.get_logger()

LEAVE_S = 5.0


class Listener:
    """The aggregator's door.

    Args:
        attester: Its name, and what belongs to it: as for ``attester_of``.
        most_runs: At a time; a connection beyond them is closed.
    """

    def __init__(self, host: str, port: int, attester: Sequence[str], most_runs: int) -> None:
        """Raises OSError: the address is taken, or none of this machine's."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._door = socket.create_server((host, port), family=family)
        self._attester = attester
        self._most_runs = most_runs
        self._runs: list[subprocess.Popen[bytes]] = []
        self._is_stopped = False

    @property
    def port(self) -> int:
        return int(self._door.getsockname()[1])

    def serve(self) -> None:
        """Until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            while not self._is_stopped:
                try:
                    connection, peer = self._door.accept()
                except OSError:  # closed by a signal
                    break
                with connection:
                    self._begin(connection, str(peer[0]))
        finally:
            self._end()

    def _begin(self, connection: socket.socket, peer: str) -> None:
        self._runs = [run for run in self._runs if run.poll() is None]
        if len(self._runs) >= self._most_runs:
            log.warning("a run was turned away: there are as many as there may be", most=self._most_runs, peer=peer)
            return
        handle = connection.fileno()
        command = [sys.executable, "-m", "quorate_server.aggregator.run", str(handle), *self._attester]
        self._runs.append(subprocess.Popen(command, pass_fds=(handle,), stdin=subprocess.DEVNULL))
        log.info("a run was brought", peer=peer, runs=len(self._runs))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopped = True
        # A blocked accept is not woken by closing its socket; this does.
        self._door.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        self._door.close()
        for run in self._runs:
            run.terminate()
        for run in self._runs:
            try:
                run.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                run.kill()
        log.info("aggregator stopped", pid=os.getpid())
