"""What the privacy ledger was seen to be, kept outside of it: in the site's other database.

Whoever puts back an older ``ledger.sqlite`` would forget what was spent. So the number and the hash of the newest entry
are written down here after each one, and beside them what a server repeated and the ledger does not hold. Both are
evidence for ever: the ledger is used only while it holds both.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quorate.errors import LedgerError
from quorate.privacy.ledger_head import SignedHead
from quorate_client.state import disk_errors, open_state, transaction

Source = Literal["ledger_head", "ledger_head_of_server"]


@dataclass(frozen=True, slots=True)
class SeenHead:
    """An entry that the ledger was seen to hold."""

    number: int
    hash: bytes


class Witness:
    """Settings in the site's database, over a connection of its own: the ledger may be used from another thread."""

    def __init__(self, path: Path) -> None:
        open_state(path).close()
        self.database = sqlite3.connect(path, isolation_level=None, timeout=60.0, check_same_thread=False)
        self.database.execute("PRAGMA synchronous=FULL")

    def close(self) -> None:
        self.database.close()

    def heads(self) -> list[SeenHead]:
        """What the ledger must hold."""
        return [seen for source in ("ledger_head", "ledger_head_of_server") if (seen := self._read(source))]

    def saw(self, head: SignedHead) -> None:
        """An entry was written. Of two processes the later entry's counts, whoever comes here first."""
        with transaction(self.database):
            known = self._read("ledger_head")
            if known is None or known.number < head.number:
                self._write("ledger_head", head)

    def was_told(self, head: SignedHead) -> None:
        """A server repeated what this site signed and the ledger does not hold."""
        with transaction(self.database):
            self._write("ledger_head_of_server", head)

    def _read(self, source: Source) -> SeenHead | None:
        with disk_errors():
            row = self.database.execute("SELECT value FROM settings WHERE name = ?", (source,)).fetchone()
        if row is None:
            return None
        try:
            number, digest = json.loads(row[0])
            return SeenHead(int(number), bytes.fromhex(digest))
        except (ValueError, TypeError) as error:
            raise LedgerError(
                "What the site's database says of the privacy ledger cannot be read",
                action="Restore state.sqlite from a backup",
            ) from error

    def _write(self, source: Source, head: SignedHead) -> None:
        value = json.dumps([head.number, head.hash.hex()])
        self.database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (source, value))
