"""A privacy ledger as a file for an auditor: JSON lines, each entry with its hash and the site's signature.

The first line names the site and its signing key; who audits compares the key's fingerprint with the one that the other
sites know. A file that ends early is still a true beginning of the ledger: its newest number and hash tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from quorate.errors import InputError
from quorate_client.ledger.entries import GENESIS, Entry, from_json, to_json

_FORMAT = "quorate.ledger/1"


def write_export(path: Path, site: str, signing_key: bytes, entries: Iterable[Entry]) -> int:
    """Write the file; gives the number of entries.

    Raises:
        FileExistsError: there is such a file.
    """
    count = 0
    with path.open("x", encoding="utf-8") as file:
        file.write(_line({"format": _FORMAT, "site": site, "signing_key": signing_key.hex()}))
        for entry in entries:
            file.write(_line(to_json(entry)))
            count += 1
    return count


def read_export(path: Path) -> tuple[bytes, Iterator[Entry]]:
    """The signing key that the file names (Ed25519, 32 bytes), and its entries; signatures are not looked at.

    Raises:
        InputError: it is no such file. LedgerError (while the entries are read): naming the first that does not follow.
    """
    try:
        header, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        signing_key = bytes.fromhex(header["signing_key"])
        if header["format"] != _FORMAT or len(signing_key) != 32:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no exported privacy ledger", expected=f"{_FORMAT}, JSON lines") from error
    return signing_key, _entries(lines)


def _entries(lines: list[Any]) -> Iterator[Entry]:
    previous = GENESIS
    for number, line in enumerate(lines, 1):
        entry = from_json(line, previous, number)
        yield entry
        previous = entry.head.hash


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True) + "\n"
