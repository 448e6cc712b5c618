"""What a task's process may not do: reach a network, see the site's keys, take the machine down with it.

``confine`` is called by a task worker before it imports anything of the task. The process moves into its own user,
network and mount namespaces (no interface, an empty folder over the keys, everything read-only but its own folders),
gives up all capabilities so that it cannot undo that, and sets its resource limits. Where the system does not let an
ordinary process make namespaces (some container engines, hardened kernels), the limits stay and the level says so;
whether that is enough, the site decides.

What this does not do: the worker runs under the daemon's user, so files that are not hidden stay readable to it, local
sockets stay open to it, and it may send signals to the daemon. Before Linux 5.12 it may change files, too. Give the
daemon its own user, and let systemd or the container engine confine both.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

_CLONE_NEWNS = 0x0002_0000
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MOUNT_SETATTR = 442
_MOUNT_ATTR_RDONLY = 1
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_HIGHEST_CAPABILITY = 63


class IsolationLevel(StrEnum):
    """``FULL``: no network, hidden folders are empty, and limits. ``LIMITS_ONLY``: the system refused the first two."""

    FULL = "full"
    LIMITS_ONLY = "limits only"


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is taken from a task worker.

    Args:
        hidden: Folders that appear empty to it: the site's keys.
        writable: The only folders in which it may change anything; None leaves it what the daemon's user may.
        memory_bytes: Most memory that it may allocate; None leaves it to the machine.
        open_files: Most files open at a time.
        nice: How far it steps back behind the daemon when the processor is short.
    """

    hidden: tuple[Path, ...] = ()
    writable: tuple[Path, ...] | None = None
    memory_bytes: int | None = None
    open_files: int = 1024
    nice: int = 5

    def to_json(self) -> dict[str, Any]:
        return {
            "hidden": [str(path) for path in self.hidden],
            "writable": None if self.writable is None else [str(path) for path in self.writable],
            "memory_bytes": self.memory_bytes,
            "open_files": self.open_files,
            "nice": self.nice,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Confinement:
        writable = value["writable"]
        return cls(
            tuple(map(Path, value["hidden"])),
            None if writable is None else tuple(map(Path, writable)),
            value["memory_bytes"],
            value["open_files"],
            value["nice"],
        )


def confine(confinement: Confinement, parent: int) -> IsolationLevel:
    """Confine this process, for good. It must have one thread only, and it dies with its parent from here on.

    Args:
        parent: The process that started this one; if that is gone by now, this process ends at once.

    Raises:
        OSError: a limit could not be set.
    """
    _limit(confinement)
    level = IsolationLevel.LIMITS_ONLY
    if _permitted(confinement):
        _enter_namespaces(confinement)
        level = IsolationLevel.FULL
    _give_up_capabilities()
    # After the namespaces: a change of credentials clears the signal that the parent's death sends.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    return level


def _limit(confinement: Confinement) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, confinement.open_files)
    if confinement.memory_bytes is not None:
        # RLIMIT_AS would also count address space that torch and CUDA reserve and never use.
        _lower(resource.RLIMIT_DATA, confinement.memory_bytes)
    # When memory runs out, the kernel takes the task and not the daemon.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    os.nice(confinement.nice)


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _permitted(confinement: Confinement) -> bool:
    """Whether a child can do it. A failure half-way (a user namespace without a mapping) could not be undone here."""
    child = os.fork()
    if child == 0:
        try:
            _enter_namespaces(confinement)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _enter_namespaces(confinement: Confinement) -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    if confinement.writable is not None:
        _make_read_only_but(confinement.writable)
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for folder in confinement.hidden:
        _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", flags, b"size=4k,mode=0500")


def _make_read_only_but(writable: tuple[Path, ...]) -> None:
    """Otherwise a task could approve studies in the site's database, loosen its policy, or move the folder that holds
    the keys aside, so that the next worker hides another one."""
    try:
        _set_read_only(Path("/"), _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, 0)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # an older kernel, or a filter that does not know the call
            raise
        return
    for folder in writable:
        path = os.fsencode(folder)
        _call("mount", path, path, None, ctypes.c_ulong(_MS_BIND), None)
        _set_read_only(folder, 0, 0, _MOUNT_ATTR_RDONLY)
    os.chdir(Path.cwd())  # the working folder is still the one below the new mount


def _set_read_only(path: Path, flags: int, attributes: int, cleared: int) -> None:
    change = (ctypes.c_uint64 * 4)(attributes, cleared, 0, 0)
    number, size = ctypes.c_long(_MOUNT_SETATTR), ctypes.c_size_t(ctypes.sizeof(change))
    _call("syscall", number, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags), change, size)


def _give_up_capabilities() -> None:
    """Nothing that the process or its children run can take the hiding away again, trace, or be dumped to a file."""
    for capability in range(_HIGHEST_CAPABILITY + 1):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # not permitted without privileges, and then there is nothing to drop; or beyond the last one
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # RLIMIT_CORE does not hold back a core dump that goes to a program.
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, *(ctypes.c_ulong(argument) for argument in (value, 0, 0, 0)))


def _call(name: str, *arguments: object) -> None:
    """A call of the C library that answers 0 when it worked."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
