"""The entries of the privacy ledger on disk: in order, signed, and held against what was seen of them elsewhere.

An older ledger put in the place of this one is found out by its witnesses (``witness``): the site's other database, and
the servers, which repeat the newest head that they were shown. One whose entries were signed with a key of which that
database knows nothing has lost its witness, and is refused as well. There is no command that accepts a loss: what was
spent and forgotten cannot be known.

What an entry says, and whether it may be written, is ``ledger``'s business.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.errors import LedgerRolledBackError
from quorate.privacy.ledger_head import SignedHead
from quorate_client.ledger.entries import GENESIS, Content, Entry, Unbounded, make_entry
from quorate_client.ledger.file import LedgerFile
from quorate_client.ledger.sums import LedgerSums, sums_of, verify
from quorate_client.ledger.witness import Witness

log = structlog.get_logger()

DAY_S = 86_400.0


class WitnessedEntries:
    """The entries and their sums. May be used from several threads and processes at once."""

    def __init__(self, file: LedgerFile, witness: Witness, signing_key: Ed25519PrivateKey) -> None:
        self.file = file
        self._witness = witness
        self._signing_key = signing_key
        self._public_key = signing_key.public_key().public_bytes_raw()
        witness.signs_with(self._public_key)
        self._lock = threading.Lock()
        self._head: SignedHead | None = None
        self._start_anew()

    def close(self) -> None:
        """Once nobody reads: SQLite falls with the whole process if a thread is still in it."""
        with self._lock:
            self.file.close()
            self._witness.close()

    # --- reading ---

    @contextmanager
    def reading(self) -> Iterator[LedgerSums]:
        """The sums of what is on disk; nobody writes meanwhile. Raises LedgerError."""
        self._write_kept()
        with self._lock:
            try:
                self._catch_up()
            except BaseException:
                self._start_anew()
                raise
            self._head = self._sums.head if self._distrusted() is None else None
            yield self._sums

    def all(self) -> list[Entry]:
        """All entries, oldest first.

        Raises:
            LedgerError: naming the first one that does not follow from the one before it.
        """
        self._write_kept()
        with self._lock:
            return list(self.file.entries_from(1, GENESIS))

    def sums(self) -> LedgerSums:
        """The sums of all entries, read anew: they stay as they are when others are written."""
        return sums_of(self.all())

    def verify(self, earlier_keys: Sequence[bytes] = ()) -> LedgerSums:
        """Walk the whole ledger: chain, signatures, and whether each entry may be where it is.

        Args:
            earlier_keys: Ed25519 public keys that the site had before the one it has now.

        Raises:
            LedgerError: naming the first wrong entry. LedgerRolledBackError.
        """
        sums = verify(self.all(), (self._public_key, *earlier_keys))
        self.require_newest()
        return sums

    def holds_use(self, use: Unbounded) -> bool:
        """Whether ``append_use`` has nothing to do, within ``reading``: the ledger lacks nothing, and holds this use of
        that day."""
        return self._head is not None and _is_written(self._sums, use)

    # --- writing ---

    @contextmanager
    def appending(self, *, require_newest: bool = True) -> Iterator[LedgerSums]:
        """Alone with the newest entries, of which nothing was lost; what is appended is on disk and witnessed after.

        The witness comes second: a crash in between leaves it one entry behind, which the next one mends.

        Raises:
            LedgerRolledBackError: the ledger is older than it was seen to be. LedgerError: it cannot be used.
            DiskFullError, WrongStateError: it could not be written, or not be witnessed.
        """
        with self._lock:
            try:
                with self.file.alone():
                    self._catch_up()
                    problem = self._distrusted()
                    if problem is not None and require_newest:
                        raise problem
                    kept = self._witness.kept() if problem is None else []
                    for use in kept:
                        self._append_use(use)
                    yield self._sums
            except BaseException:
                self._start_anew()  # it may hold what was not written: the file is read anew
                raise
            self._head = self._sums.head if problem is None else None
            if self._head is not None:
                self._witness.saw(self._head)
            self._witness.release(kept)

    def append(self, content: Content) -> Entry:
        """Write the next entry, within ``appending``."""
        entry = make_entry(content, self._sums.hash, self._signing_key)
        self.file.append(entry)
        self._sums.add(entry)
        return entry

    def append_use(self, use: Unbounded) -> None:
        """Write a use without a bound, within ``appending``; where entries are lost the witness keeps it as well, and
        it is written anew when the ledger is whole again."""
        if self._distrusted() is not None:
            self._witness.keep(use)
        self._append_use(use)

    def _append_use(self, use: Unbounded) -> None:
        """At its time, or if later entries were written since, at theirs; nothing if it is written already."""
        sums = self._sums
        if not _is_written(sums, use):
            unix_s = max(use.unix_s, sums.unix_s)
            self.append(use.model_copy(update={"number": sums.number + 1, "unix_s": unix_s}))

    def _write_kept(self) -> None:
        """What was used without a bound while the ledger lacked entries, as soon as it has them."""
        if self._witness.kept():
            with self.appending(require_newest=False):
                pass

    # --- witnesses ---

    def head(self) -> SignedHead | None:
        """The number and hash of the newest entry, signed: for servers to keep and repeat. None without entries, and of
        a ledger that lost some: a server would forget what it lost.

        The newest on disk that this process wrote or read; does not wait for a reservation that is being made.
        """
        if self._head is None:
            with self.reading():
                pass
        return self._head

    def check_witness(self, head: SignedHead, *, is_earlier: bool = False) -> None:
        """Compare what a server repeated. If the ledger does not hold it, ``reserve`` refuses from now on.

        A head that this site did not sign, with the key that it has or one that it had, is passed over: a server must
        not be able to stop a site. A ledger that never paid for anything believes the server of an ``earlier`` key of
        this site: there one was deleted, and has nothing to say against it.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self.reading() as sums:
            is_own = any(head.is_signed_by(key) for key in self._witness.signing_keys())
            if not (is_own or (is_earlier and not sums.paid)):
                log.warning("the server repeats a head of the privacy ledger that this site did not sign")
                return
            if self.file.holds(head.number, head.hash):
                return
            self._witness.was_told(head)
            self._head = None
        log.error("the privacy ledger is not what the server has seen of it", seen=head.number)

    def require_newest(self) -> None:
        """Raises LedgerRolledBackError when the ledger does not hold what it was seen to hold."""
        with self.reading():
            if (problem := self._distrusted()) is not None:
                raise problem

    def _start_anew(self) -> None:
        self._sums = LedgerSums()
        self._stranger: int | None = None
        """The first entry that was signed with a key that is not known as this site's."""

    def _catch_up(self) -> None:
        """Add to the sums what is new: each entry is read once, and the chain followed from the last one read."""
        sums = self._sums
        if sums.head is not None and not self.file.holds(sums.number, sums.hash):
            raise _rolled_back(sums.number)
        keys: list[bytes] = []
        for entry in self.file.entries_from(sums.number + 1, sums.hash):
            sums.add(entry)
            keys = keys or self._witness.signing_keys()
            if self._stranger is None and not any(entry.head.is_signed_by(key) for key in keys):
                self._stranger = entry.number

    def _distrusted(self) -> LedgerRolledBackError | None:
        """Why nothing is spent on this ledger: it lacks what it was seen to hold, or nobody here saw it before."""
        lost = next((seen for seen in self._witness.heads() if not self.file.holds(seen.number, seen.hash)), None)
        if lost is not None:
            return _rolled_back(lost.number, self._sums.number)
        return None if self._stranger is None else _unwitnessed(self._stranger)


def _is_written(sums: LedgerSums, use: Unbounded) -> bool:
    """Within a day before it, so that a year counts from the last one."""
    written = (each.unix_s for each in sums.unbounded(use.account) if each.use == use.use)
    return max(written, default=-math.inf) >= use.unix_s - DAY_S


def _rolled_back(seen: int, newest: int | None = None) -> LedgerRolledBackError:
    return LedgerRolledBackError(
        "The site's privacy ledger is not what it was seen to be, so what it lacks would be spent again",
        expected=f"the entry {seen} that was seen",
        got="another one or none in its place" + (f"; the newest entry is {newest}" if newest is not None else ""),
        action="Restore the newest copy of ledger.sqlite. Without one nobody knows what was spent: use the records of "
        "this site in no private study again",
    )


def _unwitnessed(number: int) -> LedgerRolledBackError:
    return LedgerRolledBackError(
        "Nobody here saw whether the privacy ledger is the newest: it is signed with a key that state.sqlite does not "
        "know as this site's",
        expected="the state.sqlite that was used with this ledger",
        got=f"another or a new one, to which the signature of entry {number} is strange",
        action="Restore the newest copies of ledger.sqlite and state.sqlite together. Without them nobody knows what "
        "was spent: use the records of this site in no private study again",
    )
