"""A task that does everything but train. What came of each attempt goes to its output, which stays at the site."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Thief:
    def check(self, parameters: Mapping[str, Any]) -> None: ...

    def schema(self, parameters: Mapping[str, Any]) -> None: ...

    def open(self, parameters: Mapping[str, Any], dataset: Any, seed: int) -> Any:
        root, daemon = Path(parameters["root"]), os.getppid()
        attempts: dict[str, Callable[[], object]] = {
            "read the keys": lambda: (root / "keys" / "signing.pem").read_bytes(),
            "approve a study": lambda: approve(root / "state.sqlite"),
            "loosen the policy": lambda: (root / "policy.toml").write_text('protection = ["none"]'),
            "move the server": lambda: (root / "config.toml").write_text('address = "evil:1"'),
            "change the program": lambda: Path(parameters["program"]).write_text("import evil"),
            "move the site's folder": lambda: root.rename(root.with_name("aside")),
            "replace the keys' folder": lambda: (root / "keys").rename(root / "work" / "keys"),
            "leave something at the site": lambda: (root / "extra").write_text("x"),
            "leave something in the machine": lambda: Path("/var/tmp/quorate-extra").write_text("x"),  # noqa: S108
            "undo it from namespaces of its own": lambda: remount(root),
            "read the daemon's memory": lambda: os.close(os.open(f"/proc/{daemon}/mem", os.O_RDONLY)),
            "read the daemon's environment": lambda: Path(f"/proc/{daemon}/environ").read_bytes(),
            "see what the daemon sees": lambda: os.listdir(f"/proc/{daemon}/root{root}/keys"),  # noqa: PTH208
            "trace the daemon": lambda: trace(daemon),
            "call home": lambda: socket.create_connection(("127.0.0.1", int(parameters["port"])), 5).close(),
            "use its own folder": lambda: Path("scratch").write_text("x"),
            "use a temporary file": lambda: tempfile.mkstemp(),
        }
        for name, act in attempts.items():
            try:
                act()
            except (OSError, sqlite3.Error) as error:
                sys.stdout.write(json.dumps([name, type(error).__name__]) + "\n")
            else:
                sys.stdout.write(json.dumps([name, "done"]) + "\n")
        raise RuntimeError("a patient's name")


def approve(database: Path) -> None:
    with sqlite3.connect(database, timeout=1) as connection:
        connection.execute("UPDATE answers SET answer = 'approved'")


def call(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def trace(process: int) -> None:
    call("ptrace", 16, process, None, None)  # attach
    call("ptrace", 17, process, None, None)


def remount(root: Path) -> None:
    call("unshare", 0x1000_0000 | 0x0002_0000)
    call("mount", None, b"/", None, 32 | 4096, None)  # remount, writable
    (root / "extra").write_text("x")


TASK = Thief()
