"""A kernel with configfs-tsm, as far as an attester sees it (drivers/virt/coco/tsm.c of Linux)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

MakeReport = Callable[[bytes], tuple[bytes, bytes]]
"""From the 64 bytes asked to the report and what is beside it."""


@dataclass
class _Entry:
    inblob: bytes = b""
    writes: int = 0


class Kernel:
    """Entries with the files that the real one shows, and its errors."""

    def __init__(self, provider: str, report: MakeReport) -> None:
        self.provider = provider
        self.report = report
        self.entries: dict[str, _Entry] = {}
        self.on_read: Callable[[str], None] = lambda entry: None

    def make(self, entry: str) -> None:
        if not self.provider:
            raise _refusal(errno.ENXIO)
        if entry in self.entries:
            raise _refusal(errno.EEXIST)
        self.entries[entry] = _Entry()

    def write(self, entry: str, file: str, content: bytes) -> None:
        if file != "inblob":
            raise _refusal(errno.EACCES)
        if len(content) > 64:
            raise _refusal(errno.EFBIG)
        self.entries[entry].inblob = content
        self.entries[entry].writes += 1

    def read(self, entry: str, file: str) -> bytes:
        asked = self.entries[entry]
        match file:
            case "generation":
                return f"{asked.writes}\n".encode()
            case "provider":
                return f"{self.provider}\n".encode()
            case "outblob" | "auxblob":
                if file == "auxblob" and self.provider != "sev_guest":
                    raise _refusal(errno.ENOENT)
                if len(asked.inblob) != 64:
                    raise _refusal(errno.EINVAL)
                made = self.report(asked.inblob)
                self.on_read(entry)
                return made[file == "auxblob"]
            case _:
                raise _refusal(errno.ENOENT)

    def remove(self, entry: str) -> None:
        del self.entries[entry]


def _refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))
