"""Memory and processor time of a process and its children."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import psutil

SAMPLE_S = 0.05


def tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_mb(pid: int) -> float:
    """Proportional set size: shared pages count once, however many processes hold them."""
    total = 0
    for process in tree(pid):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 1e6


class Watch:
    """Peak memory and processor time of a process tree while the block runs.

    A child that ends keeps the processor time of its last sample.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._cpu_s: dict[int, float] = {}
        self._before_s: dict[int, float] = {}
        self.peak_mb = 0.0

    def __enter__(self) -> Self:
        self._measure()
        self._before_s = dict(self._cpu_s)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._measure()

    @property
    def cpu_s(self) -> float:
        return sum(spent - self._before_s.get(pid, 0.0) for pid, spent in self._cpu_s.items())

    def _sample(self) -> None:
        while not self._over.is_set():
            self._measure()
            time.sleep(SAMPLE_S)

    def _measure(self) -> None:
        self.peak_mb = max(self.peak_mb, memory_mb(self._pid))
        for process in tree(self._pid):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._cpu_s[process.pid] = times.user + times.system
