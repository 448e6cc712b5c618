"""Runs an image that build.py made, as an engine would be told to: `make image-server` and the others end with it.

    python deploy/images/check.py server|operator|site|aggregator ARCHIVE

The root file system is read-only, the user is nobody's, all capabilities are dropped, and there is no network but
loopback. A server founds a consortium, starts and is found well by its doctor; a site's tasks are cut off from network
and keys under seccomp-site.json, and would not be under a profile without namespaces. An
aggregator, which is root as on Confidential Space, starts with evidence made by software and not with a machine's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

PROFILE = Path(__file__).parent / "seccomp-site.json"
_PATIENCE_S = 300
_USER = 65532
SCRATCH, STATE = "/tmp", "/var/lib/quorate"  # noqa: S108  # in the image

_SERVER = (
    "set -eu; quorate-server init $PWD/server --consortium demo --address 127.0.0.1:8443 --listen 127.0.0.1:8443; "
    "export QUORATE_SERVER_STATE=$PWD/server; quorate-server run 2> log & "
    "for i in $(seq 300); do grep -q 'server ready' log && break; sleep 0.2; done; "
    "cat log; grep -q 'server ready' log; quorate-server doctor; ! touch /opt/x 2>/dev/null; id -u; echo WORKS"
)
_OPERATOR = "set -eu; quorate --help; ! touch /opt/x 2>/dev/null; id -u; echo WORKS"
_SITE = (
    "set -eu; mkdir keys; quorate-client --help; ! touch /opt/x 2>/dev/null; id -u; python -c '"
    "import os, torch; from pathlib import Path; from quorate_client.workers.isolation import Confinement, confine; "
    'print("isolation:", confine(Confinement((Path("keys").resolve(),), (Path.cwd(),)), os.getppid()).value)'
    "'; echo WORKS"
)
_AGGREGATOR = (
    "set -eu; cd /tmp; ! quorate-aggregator run --attester confidential-space 2> log; cat log; "
    "grep -q 'no container of Confidential Space' log; quorate-aggregator make-key key; "
    "quorate-aggregator run --attester software --key key 2> log & "
    "for i in $(seq 300); do grep -q 'aggregator ready' /tmp/log && break; sleep 0.2; done; "
    "cat /tmp/log; grep -q 'aggregator ready' /tmp/log; ! touch /opt/x 2>/dev/null; id -u; echo WORKS"
)
SCRIPTS = {"server": _SERVER, "operator": _OPERATOR, "site": _SITE, "aggregator": _AGGREGATOR}


def main(role: str, archive: Path) -> None:
    missing = [name for name in ("umoci", "runc") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(f"NOT CHECKED: the image was not run, for that takes root, umoci and runc; missing: {missing or 'root'}")
        return
    with tempfile.TemporaryDirectory(prefix="quorate-image-") as folder:
        bundle = _unpacked(archive, Path(folder))
        printed = _run(bundle, Path(folder), f"quorate-check-{role}-{os.getpid()}", SCRIPTS[role], _seccomp(role))
        user = 0 if role == "aggregator" else _USER
        _require("WORKS" in printed and f"\n{user}\n" in printed, printed)
        if role == "site":
            _require("isolation: full" in printed, printed)
            narrow = _without_namespaces(json.loads(PROFILE.read_bytes()))
            printed = _run(bundle, Path(folder), f"quorate-narrow-{os.getpid()}", SCRIPTS[role], narrow)
            _require("isolation: limits only" in printed, printed)
    print(f"{archive.name} was run: read-only, as user {user}, without capabilities, and works")


def _unpacked(archive: Path, folder: Path) -> Path:
    layout, bundle = folder / "layout", folder / "bundle"
    with tarfile.open(archive) as tar:
        tar.extractall(layout, filter="data")
    command = ["umoci", "unpack", "--image", f"{layout}:latest", str(bundle)]
    subprocess.run(command, check=True, capture_output=True)
    return bundle


def _run(bundle: Path, folder: Path, name: str, script: str, seccomp: dict[str, Any] | None) -> str:
    """Run a script in the image. Returns what it printed."""
    state = folder / f"state-{name}"
    state.mkdir(mode=0o700)
    os.chown(state, _USER, _USER)
    path = bundle / "config.json"
    settings = json.loads(path.read_bytes())
    settings["root"]["readonly"] = True
    settings["process"] |= {
        "args": ["sh", "-c", script],
        "terminal": False,
        "noNewPrivileges": True,
        "capabilities": {},
    }
    settings["mounts"] = [mount for mount in settings["mounts"] if mount["destination"] not in (SCRATCH, STATE)]
    settings["mounts"] += [
        {"destination": SCRATCH, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
        {"destination": STATE, "type": "bind", "source": str(state), "options": ["bind", "rw"]},
    ]
    settings["linux"]["seccomp"] = seccomp
    path.write_text(json.dumps(settings))
    command = ["runc", "run", "--bundle", str(bundle), name]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_PATIENCE_S,
        check=False,
    )
    return done.stdout.decode()


def _seccomp(role: str) -> dict[str, Any] | None:
    return json.loads(PROFILE.read_bytes()) if role == "site" else None


def _without_namespaces(profile: dict[str, Any]) -> dict[str, Any]:
    """As the usual profiles of engines are."""
    rules = [rule for rule in profile["syscalls"] if "unshare" not in rule["names"]]
    return profile | {"syscalls": [*rules, {"names": ["clone"], "action": "SCMP_ACT_ALLOW"}]}


def _require(found: bool, printed: str) -> None:
    if not found:
        sys.exit(f"check.py: the image does not work as it should:\n{printed}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SCRIPTS:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
