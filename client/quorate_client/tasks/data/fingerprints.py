"""By what a record, or the unit that it belongs to, is known again: keyed fingerprints of 64 bits.

A fingerprint is HMAC-SHA256, cut short, under a key that never leaves the site: without it nobody can try out whose
record it is. It covers what a record says and not how it is written: neither the order of rows or columns, nor the
ranges, types and orders of a schema change it. By the same numbers records are known to be the same in two data sets,
and drawn for the test part, so that a record is on the same side under whatever name, and in whatever order, it comes.

What is *not* known again: a number in another unit of measure or with fewer digits, a column under another name, an
image of another size. Where a schema names the unit of each record (``file.unit``), that decides beside the records.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from quorate_client.tasks.data.images import Images
from quorate_client.tasks.data.schema import CategoryColumn, TabularSchema
from quorate_client.tasks.data.table import Table

Fingerprints = npt.NDArray[np.uint64]
"""[records], in the order of the file."""

SHARED = 0.05
"""Two data sets with a larger share of either in common are about the same people."""

_RECORD, _UNIT, _KEY = b"quorate/record/v1\x00", b"quorate/unit/v1\x00", b"quorate/records-key/v1\x00"
_PIECE_ROWS = 20_000
_WORDS = {"true": "1", "false": "0"}
_WHOLE = re.compile(r"\+?0*(\d+)(?:\.0*)?")
_MISSING = np.uint64(0x7FC00000)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_check(key: bytes) -> str:
    """Tells one key from another, and nothing of it."""
    return hmac.digest(key, _KEY, "sha256")[:8].hex()


def of_table(key: bytes, schema: TabularSchema, table: Table) -> Fingerprints:
    """Of each record, over its cells and its class."""
    return _each_once(of_rows(key, schema, table))


def of_rows(key: bytes, schema: TabularSchema, table: Table) -> Fingerprints:
    """The same, but equal for records that say the same."""
    names = table_columns(schema)
    cells = {_folded(schema.label.name): _of_words(schema.label.class_order)[table.labels]}
    for column in schema.columns:
        values = table.columns[column.name]
        categories = column.categories if isinstance(column, CategoryColumn) else None
        cells[_folded(column.name)] = _of_numbers(values) if categories is None else _of_places(categories, values)
    header = _RECORD + hashlib.sha256("\x00".join(names).encode()).digest()

    def rows() -> Iterator[bytes]:
        for start in range(0, table.records, _PIECE_ROWS):
            yield from (
                row.tobytes() for row in np.stack([cells[n][start : start + _PIECE_ROWS] for n in names], axis=1)
            )

    return _keyed(key, header, rows(), table.records)


def table_columns(schema: TabularSchema) -> tuple[str, ...]:
    """What a record's fingerprint covers."""
    return tuple(sorted(_folded(name) for name in (*(column.name for column in schema.columns), schema.label.name)))


def of_images(key: bytes, images: Images) -> Fingerprints:
    """Of each image, over its pixels."""
    header = _RECORD + image_columns(images)[0].encode()
    return _each_once(_keyed(key, header, (pixels.tobytes() for pixels in images.pixels), images.records))


def image_columns(images: Images) -> tuple[str, ...]:
    """What an image's fingerprint covers."""
    return (f"{' x '.join(map(str, images.pixels.shape[1:]))} pixels",)


def of_units(key: bytes, names: Sequence[str]) -> Fingerprints:
    """Of each record's unit: equal numbers for the records of one unit. How a number is written does not count."""
    return _keyed(key, _UNIT, (_unit(name).encode() for name in names), len(names))


def overlap(some: Fingerprints, others: Fingerprints) -> float:
    """The larger of the two shares that they have in common."""
    some, others = np.unique(some), np.unique(others)
    return len(np.intersect1d(some, others, assume_unique=True)) / max(1, min(len(some), len(others)))


def below(fingerprints: Fingerprints, share: float) -> npt.NDArray[np.bool_]:
    """A share of them, above 0 and below 1, by lots that depend on nothing but the fingerprint and its key."""
    return fingerprints < np.uint64(int(share * 2.0**64))


def _keyed(key: bytes, header: bytes, messages: Iterable[bytes], count: int) -> Fingerprints:
    digests = (int.from_bytes(hmac.digest(key, header + message, "sha256")[:8]) for message in messages)
    return np.fromiter(digests, np.uint64, count)


def _each_once(fingerprints: Fingerprints) -> Fingerprints:
    """Records that say the same are counted as they are: the second one of a kind gets a number of its own, the third
    one too, the same in every file. Mixed by splitmix64's finalizer (Steele et al. 2014), a bijection."""
    order = np.argsort(fingerprints, kind="stable")
    ordered = fingerprints[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    places = np.arange(len(ordered), dtype=np.uint64)
    earlier = np.empty_like(places)
    earlier[order] = places - np.maximum.accumulate(np.where(is_first, places, 0).astype(np.uint64))
    mixed = fingerprints + earlier * _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.where(earlier == 0, fingerprints, mixed ^ (mixed >> np.uint64(31)))


def _of_numbers(values: npt.NDArray[np.float64]) -> Fingerprints:
    """In single precision, as models see them and as a Parquet file may hold them."""
    with np.errstate(over="ignore"):
        singles = values.astype(np.float32) + np.float32(0)  # -0 becomes 0
    return np.where(np.isnan(singles), _MISSING, singles.view(np.uint32).astype(np.uint64))


def _of_places(categories: Sequence[str], values: npt.NDArray[np.float64]) -> Fingerprints:
    is_missing = np.isnan(values)
    return np.where(is_missing, _MISSING, _of_words(categories)[np.where(is_missing, 0, values).astype(np.int64)])


def _of_words(words: Sequence[str]) -> Fingerprints:
    return np.array([_of_word(word) for word in words], dtype=np.uint64)


def _of_word(word: str) -> int:
    """A number where it is one: a column may be numbers in one schema and categories in the other."""
    folded = _folded(word)
    folded = _WORDS.get(folded, folded)
    try:
        return int(_of_numbers(np.array([float(folded.replace("_", "?"))]))[0])
    except ValueError:
        return int.from_bytes(hashlib.sha256(folded.encode()).digest()[:8]) | 1 << 63


def _unit(name: str) -> str:
    folded = _folded(name)
    whole = _WHOLE.fullmatch(folded)
    return whole[1] if whole else folded


def _folded(text: str) -> str:
    return text.strip().casefold()
