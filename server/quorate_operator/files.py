"""Files that the operator's command writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from quorate.errors import InputError
from quorate.process.private_files import create_private
from quorate_operator.views import InvitationView

INVITATION_FORMAT = "quorate.invitation/1"


@contextmanager
def private_file(path: Path) -> Iterator[TextIO]:
    """A new file that only its owner may read, from its first byte on; removed again when the block fails.

    It is opened before the server is asked, so that no invitation is made and then lost.

    Raises:
        AlreadyExistsError: there is a file of that name. InputError: it cannot be written.
    """
    try:
        descriptor = create_private(path, action="Move it away, or name another file with --output")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
    except BaseException:
        path.unlink()
        raise


def invitation_text(invitation: InvitationView) -> str:
    """The content of an invitation file, JSON."""
    content = {
        "format": INVITATION_FORMAT,
        "consortium": invitation.consortium,
        "address": invitation.address,
        "site": invitation.site,
        "ca_pem": invitation.ca_pem.decode("ascii"),
        "certificate_pem": invitation.certificate_pem.decode("ascii"),
        "key_pem": invitation.key_pem.decode("ascii"),
        "expires_unix_s": invitation.expires_unix_s,
    }
    return json.dumps(content, indent=2) + "\n"


def write_download(path: Path, pieces: Iterable[bytes]) -> int:
    """Write what arrives beside ``path`` and put it in place when it is whole. Returns its size in bytes.

    Raises:
        InputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    size = 0
    try:
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                size += len(piece)
        partial.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return size


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"Cannot write {path}", got=error.strerror or "", action="Name another file with --output")
