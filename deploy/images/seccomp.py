"""Writes the seccomp profile under which a container engine runs a site: seccomp-site.json, beside this file.

    python deploy/images/seccomp.py           write it
    python deploy/images/seccomp.py --check   write nothing; fail when it is stale

The usual profile of an engine forbids the namespaces in which tasks are cut off from network and keys. This one permits
what the unit for systemd permits, from whose lines it is made, and namespaces of the three kinds that tasks need.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UNIT = HERE.parent / "systemd" / "quorate-client.service"
PROFILE = HERE / "seccomp-site.json"

_EPERM, _ENOSYS = 1, 38
# CLONE_NEWTIME, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID: all namespaces but user, net and mnt.
_OTHER_NAMESPACES = 0x80 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000


def permitted_calls(unit: str, sets: dict[str, set[str]]) -> set[str]:
    """What the lines SystemCallFilter= of a unit leave: the first sets the default, a tilde takes away."""

    def expand(word: str) -> set[str]:
        return set().union(*map(expand, sets[word])) if word.startswith("@") else {word}

    permitted: set[str] = set()
    for line in unit.splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            calls = set().union(*map(expand, value.removeprefix("~").split()))
            permitted = permitted - calls if value.startswith("~") else permitted | calls
    return permitted


def call_sets() -> dict[str, set[str]]:
    """Systemd's named sets of calls, as the installed version has them."""
    text = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    sets: dict[str, set[str]] = {}
    name = ""
    for line in text.splitlines():
        word = line.strip()
        if line.startswith("@"):
            name = word
            sets[name] = set()
        elif word and not word.startswith("#") and name:
            sets[name].add(word)
    return sets


def profile(permitted: set[str]) -> dict[str, Any]:
    """The profile in the engines' form."""
    no_other_namespace = {"index": 0, "value": _OTHER_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": sorted(permitted - {"clone", "clone3", "unshare", "setns"}), "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone", "unshare"], "action": "SCMP_ACT_ALLOW", "args": [no_other_namespace]},
            # Its flags lie in memory, where no filter can look: the C library then uses clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        ],
    }


def written(made: dict[str, Any]) -> str:
    return json.dumps(made, indent=1) + "\n"


if __name__ == "__main__":
    new = written(profile(permitted_calls(UNIT.read_text(encoding="utf-8"), call_sets())))
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if PROFILE.read_text(encoding="utf-8") == new else f"{PROFILE} is stale: run {sys.argv[0]}")
    PROFILE.write_text(new, encoding="utf-8")
