"""What the privacy ledger was seen to be, kept outside of it: in the site's other database.

Whoever puts back an older ``ledger.sqlite`` would forget what was spent. So the number and the hash of the newest entry
are written down here after each one, and beside them what a server repeated and the ledger does not hold. Both are
evidence for ever: the ledger is used only while it holds both.

What was used without a bound while the ledger lacked entries is kept here until it has them: the copy that is put back
then knows nothing of it.

The keys that ever signed here are written down too: a site that joins anew has another one, and what a server repeats
was signed with an earlier one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quorate.errors import LedgerError
from quorate.privacy.ledger_head import SignedHead
from quorate_client.ledger.entries import Unbounded
from quorate_client.site.database import disk_errors, open_state, transaction

Source = Literal["ledger_head", "ledger_head_of_server"]
_KEYS = "ledger_keys"
_KEPT = "ledger_unbounded"


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

    def signing_keys(self) -> list[bytes]:
        """The Ed25519 public keys that the site had, 32 bytes each."""
        return [bytes.fromhex(text) for text in self._setting(_KEYS) or ()]

    def signs_with(self, public_key: bytes) -> None:
        """This is the site's key now."""
        with transaction(self.database):
            known = self._setting(_KEYS) or []
            if public_key.hex() not in known:
                self._set(_KEYS, [*known, public_key.hex()])

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

    def kept(self) -> list[Unbounded]:
        """What was used without a bound and may be missing on the ledger."""
        try:
            return [Unbounded.model_validate_json(text) for text in self._setting(_KEPT) or ()]
        except ValueError as error:
            raise _unreadable() from error

    def keep(self, use: Unbounded) -> None:
        """Until ``release``; of each run and account the newest."""
        with transaction(self.database):
            others = [each for each in self.kept() if (each.use, each.account) != (use.use, use.account)]
            self._keep([*others, use])

    def release(self, uses: Sequence[Unbounded]) -> None:
        """They are on the ledger."""
        if uses:
            with transaction(self.database):
                self._keep([each for each in self.kept() if each not in uses])

    def _keep(self, uses: Sequence[Unbounded]) -> None:
        self._set(_KEPT, [each.model_dump_json() for each in uses])

    def _read(self, source: Source) -> SeenHead | None:
        value = self._setting(source)
        if value is None:
            return None
        try:
            number, digest = value
            return SeenHead(int(number), bytes.fromhex(digest))
        except (ValueError, TypeError) as error:
            raise _unreadable() from error

    def _write(self, source: Source, head: SignedHead) -> None:
        self._set(source, [head.number, head.hash.hex()])

    def _setting(self, name: str) -> list[Any] | None:
        with disk_errors():
            row = self.database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        try:
            value = json.loads(row[0])
        except ValueError as error:
            raise _unreadable() from error
        if not isinstance(value, list):
            raise _unreadable()
        return value

    def _set(self, name: str, value: list[Any]) -> None:
        self.database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))


def _unreadable() -> LedgerError:
    return LedgerError(
        "What the site's database says of the privacy ledger cannot be read",
        action="Restore state.sqlite from a backup",
    )
