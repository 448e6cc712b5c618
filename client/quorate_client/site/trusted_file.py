"""Reading a file that decides what is allowed: only where nobody but its owners could have put it, or changed it."""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path

from quorate.errors import ConfigError

_MAX_LINKS = 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_trusted(path: Path, owners: frozenset[int]) -> str:
    """The text of a file.

    Each step to it from ``/`` on, through links too, must belong to ``owners``, and its folders must be writable by
    them alone; in a folder like ``/tmp``, where everybody may put things but nobody may take away another's, a step of
    theirs is good. The order is what keeps others from getting in between: what was looked at, only owners can change
    while the next step is. The file is opened once, and what is looked at is what is read.

    Args:
        owners: User ids.

    Raises:
        ConfigError: another could have chosen what is in it, or it cannot be read.
    """
    try:
        descriptor = os.open(_resolved(path, owners), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path} is no file")
            _require_owner(path, found, owners)
            if found.st_mode & _OTHERS_WRITE:
                raise ConfigError(
                    f"{path} can be written by more users than its owner",
                    expected="a mode like 0644",
                    got=f"{stat.S_IMODE(found.st_mode):04o}",
                    action="Take the write permission from group and others, and see who changed it",
                )
            return file.read()
    except OSError as error:
        raise ConfigError(
            f"Cannot read {path}", got=error.strerror or "", action="See that the daemon's user may read it (mode 0644)"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8", got=error.reason) from error


def _resolved(path: Path, owners: frozenset[int]) -> Path:
    """Where the file is, without links."""
    place, links = Path("/"), 0
    ahead = deque(path.absolute().parts)
    while ahead:
        name = ahead.popleft()
        if name == "..":
            place = place.parent
            continue
        step = place / name
        found = step.lstat()
        _require_owner(step, found, owners)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise ConfigError(f"{path} is a link that leads nowhere", expected=f"at most {_MAX_LINKS} links")
            ahead.extendleft(reversed(step.readlink().parts))  # an absolute one begins at / again
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            raise ConfigError(
                f"{path} is in a folder, {step}, that more users than its owner may write: they can put another file "
                "in its place",
                expected="a mode like 0755",
                got=f"{stat.S_IMODE(found.st_mode):04o}",
                action=f"Run `chmod go-w {step}`, and see whether the file was exchanged",
            )
        place = step
    return place


def _require_owner(step: Path, found: os.stat_result, owners: frozenset[int]) -> None:
    if found.st_uid not in owners:
        raise ConfigError(
            f"{step} belongs to a user who must not decide what is allowed here",
            expected=f"user id {' or '.join(map(str, sorted(owners)))}: root, or whom the site's keys belong to",
            got=f"user id {found.st_uid}",
            action="See who put it there; then give it to one of these with `chown`",
        )
