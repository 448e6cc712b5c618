"""Puts what was unpacked in the place of what is in a state folder. Nothing is deleted: what was there is set aside.

The folder itself stays, for it may be a mount, or in a place where nobody may write. So each entry moves by itself, and
the one without which no program starts goes first and comes last: killed in between, nothing runs on a mixture, and the
same command can be given again.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from quorate.errors import AlreadyExistsError, StorageError
from quorate.process.private_files import flush_folder

UNPACKED = "restoring"
ASIDE = "replaced-"


@contextmanager
def unpacking(state: Path) -> Iterator[Path]:
    """The name of a folder to unpack into; it is gone afterwards."""
    folder = state / UNPACKED
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def present(state: Path, stays: Collection[str]) -> list[Path]:
    """What would be set aside. ``stays`` are names that are nobody's state, a lock's for example."""
    kept = {UNPACKED, *stays}
    return sorted(each for each in state.iterdir() if each.name not in kept and not each.name.startswith(ASIDE))


def put_in_place(state: Path, unpacked: Path, *, key: str, stays: Collection[str], replace: bool, now: float) -> Path:
    """Returns the folder in which what was there is now; there is none where nothing was.

    Args:
        key: The entry without which no program starts.

    Raises:
        AlreadyExistsError: the folder is not empty, and ``replace`` does not say that this is known.
        StorageError: something could not be moved.
    """
    there = present(state, stays)
    if there and not replace:
        raise AlreadyExistsError(
            f"{state} is not empty: {there[0].name} is there",
            action="Restore into an empty folder, or pass --replace: what is there is then set aside, not deleted",
        )
    aside = state / f"{ASIDE}{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
    try:
        if there:
            aside.mkdir(mode=0o700)
            _move(there, aside, first=key)
        _move(sorted(unpacked.iterdir()), state, last=key)
    except OSError as error:
        raise StorageError(
            f"The restored state cannot be put into {state}",
            got=error.strerror or "",
            action=f"What was there is in {aside.name}; mend the cause and give the command again",
        ) from error
    return aside


def _move(entries: list[Path], target: Path, *, first: str = "", last: str = "") -> None:
    for entry in sorted(entries, key=lambda each: (each.name == last, each.name != first)):
        entry.rename(target / entry.name)
        flush_folder(target)
        flush_folder(entry.parent)
