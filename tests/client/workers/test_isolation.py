"""What a confined process can still do. Each check runs in a process of its own: confinement is for good."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate_client.workers.isolation import Confinement, IsolationLevel

BEGIN = """
import ctypes, json, os, resource, signal, socket, sys
from pathlib import Path
from quorate_client.workers.isolation import Confinement, confine

settings = json.loads(sys.argv[1])
level = confine(Confinement.from_json(settings["confinement"]), os.getppid())
libc = ctypes.CDLL(None, use_errno=True)
result = {"level": level.value}

def attempt(name, action):
    try:
        result[name] = action()
    except Exception as error:
        result[name] = type(error).__name__
"""
END = "\nprint(json.dumps(result))"


def in_confinement(script: str, confinement: Confinement, **settings: Any) -> dict[str, Any]:
    """Run a script in a confined process and give its ``result``."""
    argument = json.dumps({"confinement": confinement.to_json(), **settings})
    command = [sys.executable, "-c", BEGIN + script + END, argument]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return result


def fully(script: str, confinement: Confinement, **settings: Any) -> dict[str, Any]:
    result = in_confinement(script, confinement, **settings)
    if result["level"] != IsolationLevel.FULL:
        pytest.skip("NOT TESTED: this machine does not permit user namespaces, so tasks have resource limits only")
    return result


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "signing.key").write_text("secret")
    return folder


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_task_cannot_reach_a_port_on_loopback(listener: socket.socket) -> None:
    script = """
attempt("connect", lambda: socket.create_connection(("127.0.0.1", settings["port"]), timeout=5).close())
"""
    assert fully(script, Confinement(), port=listener.getsockname()[1])["connect"] == "OSError"
    assert not select.select([listener], [], [], 0)[0]


def test_a_task_sees_an_empty_folder_in_place_of_the_keys_and_cannot_write_there(keys: Path) -> None:
    script = """
folder = Path(settings["keys"])
attempt("names", lambda: os.listdir(folder))
attempt("read", lambda: (folder / "signing.key").read_text())
attempt("write", lambda: (folder / "new").write_text("x"))
"""
    result = fully(script, Confinement(hidden=(keys,)), keys=str(keys))
    assert (result["names"], result["read"], result["write"]) == ([], "FileNotFoundError", "OSError")
    assert (keys / "signing.key").read_text() == "secret"


def test_a_task_cannot_take_the_hiding_away_not_even_from_namespaces_of_its_own(keys: Path) -> None:
    script = """
folder = settings["keys"].encode()
attempt("unmount", lambda: libc.umount2(folder, 2))
attempt("namespaces", lambda: libc.unshare(0x10000000 | 0x00020000))
attempt("unmount inside", lambda: libc.umount2(folder, 2))
attempt("names", lambda: os.listdir(folder.decode()))
"""
    result = fully(script, Confinement(hidden=(keys,)), keys=str(keys))
    assert (result["unmount"], result["unmount inside"], result["names"]) == (-1, -1, [])


def test_a_task_cannot_read_the_daemons_memory_environment_or_files_through_proc(keys: Path) -> None:
    script = """
for name in ("mem", "environ", "root/etc/hostname", "fd/0"):
    attempt(name, lambda: open(f"/proc/{settings['daemon']}/{name}", "rb").read(1))
attempt("root", lambda: os.listdir(f"/proc/{settings['daemon']}/root" + settings["keys"]))
"""
    result = fully(script, Confinement(hidden=(keys,)), daemon=os.getpid(), keys=str(keys))
    assert {result[name] for name in ("mem", "environ", "root/etc/hostname", "root")} == {"PermissionError"}


def test_a_task_has_no_capabilities_and_gains_none() -> None:
    script = """
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
result["capabilities"] = [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")]
result["no new privileges"] = status["NoNewPrivs"].strip()
"""
    result = in_confinement(script, Confinement())
    assert result["capabilities"] == [0, 0, 0, 0]
    assert result["no new privileges"] == "1"


def test_limits_hold(tmp_path: Path) -> None:
    script = """
result["core"] = resource.getrlimit(resource.RLIMIT_CORE)
result["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
result["dumpable"] = libc.prctl(3, 0, 0, 0, 0)
result["score"] = Path("/proc/self/oom_score_adj").read_text().strip()
result["nice"] = os.nice(0) - settings["nice"]
attempt("hog", lambda: len(bytearray(600 << 20)))
attempt("modest", lambda: len(bytearray(100 << 20)))
"""
    confinement = Confinement(memory_bytes=512 << 20, open_files=64, nice=3)
    result = in_confinement(script, confinement, nice=os.nice(0))
    assert (result["core"], result["files"]) == ([0, 0], [64, 64])
    assert (result["dumpable"], result["score"], result["nice"]) == (0, "1000", 3)
    assert (result["hog"], result["modest"]) == ("MemoryError", 100 << 20)


def test_what_cannot_be_hidden_leaves_the_limits_and_is_said(tmp_path: Path) -> None:
    script = """
result["core"] = resource.getrlimit(resource.RLIMIT_CORE)
attempt("write", lambda: Path(settings["file"]).write_text("x"))
"""
    result = in_confinement(script, Confinement(hidden=(tmp_path / "missing",)), file=str(tmp_path / "file"))
    assert result["level"] == IsolationLevel.LIMITS_ONLY
    assert (result["core"], result["write"]) == ([0, 0], 1)


def test_a_confined_process_can_work_on_the_sites_files(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("of the site")
    script = """
folder = Path(settings["folder"])
attempt("read", lambda: (folder / "records").read_text())
attempt("write", lambda: (folder / "update").write_text("update"))
"""
    result = in_confinement(script, Confinement(), folder=str(tmp_path))
    assert (result["read"], result["write"]) == ("of the site", 6)
    assert (tmp_path / "update").stat().st_uid == os.getuid()


def test_a_task_dies_with_the_daemon(tmp_path: Path) -> None:
    """Even when the daemon is killed and the task neither reads nor writes anything."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    task = BEGIN + "\nprint(os.getpid(), file=open(settings['pipe'], 'w'), flush=True)\nsignal.pause()"
    argument = json.dumps({"confinement": Confinement().to_json(), "pipe": str(pipe)})
    daemon = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {task!r}, {argument!r}])"
    with subprocess.Popen([sys.executable, "-c", daemon]) as process:
        pid = int(pipe.read_text())
        descriptor = os.pidfd_open(pid)
        process.send_signal(signal.SIGKILL)
    readable, _, _ = select.select([descriptor], [], [], 10)
    os.close(descriptor)
    assert readable
