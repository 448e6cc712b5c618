"""Secret keys of the site's own that are made once, on first use, and are of no use anew: what was made under the old
one is not known again."""

from __future__ import annotations

import os
from pathlib import Path

from quorate.errors import WrongStateError
from quorate.process.private_files import write_private

KEY_BYTES = 32


def lasting_key(path: Path, made_under_it: Path, what: str, action: str) -> bytes:
    """The key in ``path``; made where nothing was made under it yet.

    Args:
        made_under_it: A folder that is empty, or not there, as long as nothing was.
        what: Whose key it is, in words: "of the records' fingerprints".
        action: How to get it back.

    Raises:
        WrongStateError: it is gone, or no key.
    """
    if not path.exists():
        if made_under_it.is_dir() and any(made_under_it.iterdir()):
            raise WrongStateError(f"The key {path} {what} is not there", action=action)
        write_private(path, os.urandom(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise WrongStateError(f"{path} is no key {what}", action=action)
    return key
