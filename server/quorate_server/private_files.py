"""Files that nobody but their owner may read."""

from __future__ import annotations

import os
from pathlib import Path

from quorate.errors import AlreadyExistsError


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read, from its first byte on.

    Raises:
        AlreadyExistsError: there is a file of that name.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists and is not overwritten") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
