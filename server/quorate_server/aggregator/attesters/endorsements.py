"""What the vendor signed beside evidence: read for each piece anew, since whoever runs the machine keeps it fresh.

Nothing in it is believed here: it is signed, and a site checks it.
"""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

from quorate.attestation.evidence import MAX_ENDORSEMENTS_BYTES
from quorate.errors import CollateralError

_ENTRY = struct.Struct("<16sII")
"""A certificate's GUID, where it begins in the table, how many bytes it has (AMD 56421, section 4.1.8.1)."""
_VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes  # as it is read, not in the order of a Windows GUID


def read_endorsements(file: Path) -> bytes:
    """Collateral of Intel (JSON), or the VCEK certificate (DER).

    Raises:
        CollateralError: the file cannot be read, or holds something else.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_ENDORSEMENTS_BYTES + 1)
    except OSError as error:
        raise CollateralError(
            f"What the vendor signed cannot be read from {file}",
            got=error.strerror or str(error),
            action="The file is named by --endorsements; put a new one in its place by renaming it",
        ) from error
    if not 0 < len(content) <= MAX_ENDORSEMENTS_BYTES or content.startswith(b"-----BEGIN"):
        raise CollateralError(
            f"{file} holds no endorsements",
            expected="the collateral of Intel as JSON (TDX), or the VCEK certificate in DER, not PEM (SEV-SNP)",
        )
    return content


def vcek_in_table(table: bytes) -> bytes:
    """The VCEK certificate (DER) in the table that the host keeps for its guests.

    Raises:
        CollateralError: it is not there, as on hosts that keep no table, or a VLEK in it.
    """
    for at in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, start, size = _ENTRY.unpack_from(table, at)
        if not any(guid):
            break
        if guid == _VCEK and start + size <= len(table):
            return table[start : start + size]
    raise CollateralError(
        "The host gives its guests no VCEK certificate",
        action="Fetch it from AMD for this chip and its versions, and name the file with --endorsements",
    )
