"""What a site remembers of a data set's records: their fingerprints, in the order of the file, for ever.

One file for each registration in the site's ``records`` folder, named by its own digest, which an entry of the privacy
ledger repeats: what is lost or changed is noticed. It holds no values, and the key of the fingerprints lies with the
site's other keys, out of sight of task workers. Those read the file: it tells them which records are held out and which
belong to one unit, so that neither the key nor the unit's name has to reach a task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quorate.errors import DataError
from quorate.process.private_files import write_private
from quorate_client.site.lasting_key import lasting_key
from quorate_client.tasks.data.fingerprints import SHARED, Fingerprints, below, overlap

_FORMAT = "quorate.records/1"
_KEY_FILE = "records.key"
_ALIKE = 0.5
"""Of the columns' names. Records of other columns cannot be compared; with so many the same they may well be the same
people."""
_RESTORE = "Restore records/ and keys/records.key from a backup: they are needed to know records again"


@dataclass(frozen=True, slots=True)
class RecordIndex:
    """The records of one registration.

    Args:
        columns: What a fingerprint covers.
        fraction: The share that is held out.
        key_check: Of the key.
        records: All distinct.
        units: Equal for the records of one unit; None where each record is a unit of its own.
    """

    columns: tuple[str, ...]
    fraction: float
    key_check: str
    records: Fingerprints
    units: Fingerprints | None

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Which records are for evaluation, [records]; those of a unit all are or none is."""
        return below(self.records if self.units is None else self.units, self.fraction)

    @property
    def unit_numbers(self) -> npt.NDArray[np.int64] | None:
        """Of each record the number of its unit."""
        return None if self.units is None else np.unique(self.units, return_inverse=True)[1].astype(np.int64)

    @property
    def counts(self) -> tuple[int, int]:
        """How many units are trained on and how many are held out."""
        held_out = self.held_out
        each = self.records if self.units is None else self.units
        return len(np.unique(each[~held_out])), len(np.unique(each[held_out]))

    def shares_with(self, other: RecordIndex) -> bool:
        """Whether the two must be taken to be about the same people."""
        if self.units is not None and other.units is not None and overlap(self.units, other.units) > SHARED:
            return True
        if self.columns == other.columns:
            return overlap(self.records, other.records) > SHARED
        if self.units is not None and other.units is not None:
            return False
        common = len({*self.columns} & {*other.columns})
        return common > _ALIKE * min(len(self.columns), len(other.columns))


def records_key(keys: Path, folder: Path) -> bytes:
    """The key of this site's fingerprints; made before the first data set is registered.

    Raises:
        WrongStateError: it is gone, or no key.
    """
    return lasting_key(keys / _KEY_FILE, folder, "of the records' fingerprints", _RESTORE)


def write_index(folder: Path, index: RecordIndex) -> Path:
    """Put an index into the folder of them."""
    about = {
        "format": _FORMAT,
        "columns": list(index.columns),
        "fraction": index.fraction,
        "key_check": index.key_check,
        "records": len(index.records),
        "units": index.units is not None,
    }
    parts = [index.records] if index.units is None else [index.records, index.units]
    content = json.dumps(about).encode() + b"\n" + b"".join(part.astype("<u8").tobytes() for part in parts)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / hashlib.sha256(content).hexdigest()
    write_private(path, content)
    return path


def read_index(path: Path) -> RecordIndex:
    """
    Raises:
        DataError: it is not there, or not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read the fingerprints {path}", got=error.strerror or "", action=_RESTORE) from None
    if hashlib.sha256(content).hexdigest() != path.name:
        raise DataError(f"The fingerprints {path} are damaged", action=_RESTORE)
    header, _, body = content.partition(b"\n")
    about = json.loads(header)
    numbers = np.frombuffer(body, "<u8").astype(np.uint64)
    records = about["records"]
    units = numbers[records:] if about["units"] else None
    return RecordIndex(tuple(about["columns"]), about["fraction"], about["key_check"], numbers[:records], units)


def shared_with(index: RecordIndex, known: Iterable[tuple[str, bytes]], folder: Path) -> list[str]:
    """The data sets that are about the same people.

    Args:
        known: Name and digest of all that was ever registered here.

    Raises:
        DataError: something of it cannot be compared, or another share of the same records is held out there.
    """
    found: list[str] = []
    for name, digest in known:
        other = read_index(folder / digest.hex())
        if other.key_check != index.key_check:
            raise DataError(f"The records of {name} were registered under another key", action=_RESTORE)
        if not index.shares_with(other):
            continue
        if index.fraction != other.fraction:
            raise DataError(
                f"Records of the data set {name} would change between training and test",
                expected=f"the test fraction {other.fraction:g}, with which they were registered",
                got=f"{index.fraction:g}",
                action=f"Pass --test-fraction {other.fraction:g}",
            )
        found.append(name)
    return sorted({*found})


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder, in hex."""
    if path.is_file():
        with path.open("rb") as content:
            return file_digest(content)
    whole = hashlib.sha256()
    for each in sorted(each for each in path.rglob("*") if each.is_file()):
        with each.open("rb") as content:
            whole.update(f"{each.relative_to(path)}\x00{file_digest(content)}\n".encode())
    return whole.hexdigest()


def file_digest(file: BufferedReader) -> str:
    """SHA-256 of an open file, from its beginning, in hex."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
