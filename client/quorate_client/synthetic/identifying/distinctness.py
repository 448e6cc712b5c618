"""Whether whole numbers or words tell records apart, as those do that were given out one for each.

A measurement with decimals is all distinct by nature and is never suspected. Whole ones, such as incomes, often are
nearly so; what gives away a record number is that it repeats less often than chance would have it, that it follows the
order of the file, or that it is spread evenly over all numbers of its length.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from quorate_client.synthetic.identifying.sign import Sign
from quorate_client.tasks.data.columns import Vector

_FEW_RECORDS = 20
"""With fewer nothing can be said."""
_NEARLY_ALL = 0.95
"""Of the records that must have a value of their own; a few are registered twice."""
_DEVIATIONS = 5.0
"""Standard deviations that count as beyond chance."""
_LONG = 9
"""Digits that hardly a measurement has before its point."""
_WIDE = 6
_EVEN_IN_BLOCK, _EVEN_IN_SPAN = 50, 200
"""Records from which on an even spread can be told from a bell: over all numbers of a length with the same first
digits, and between the lowest and the highest number."""
_KOLMOGOROV = 1.63
"""One even spread in a hundred looks less even."""
_MANY_WORDS, _OWN_WORD = 50, 0.9


def numbers_tell_apart(values: Vector) -> Sign | None:
    """
    Args:
        values: [records] whole numbers in the order of the file, without missing ones.
    """
    records = len(values)
    if records < _FEW_RECORDS:
        return None
    steps = np.diff(values)
    if (steps > 0).all() or (steps < 0).all():
        return Sign("record number", "each record's number lies beyond the one of the record before")
    distinct = np.unique(values)
    if len(distinct) < _NEARLY_ALL * records:
        return None
    step = int(np.gcd.reduce(np.diff(distinct).astype(np.int64)))
    if _repeats_too_rarely(len(distinct), records, int((distinct[-1] - distinct[0]) / step) + 1):
        return Sign("record number", "it repeats less often than chance would have it: one number for each record")
    if distinct[0] >= 10.0 ** (_LONG - 1):
        return Sign(
            "near-unique", f"whole numbers of {_LONG} or more digits, and nearly every record has one of its own"
        )
    if _fills_its_block(distinct):
        return Sign("record number", "numbers of one length, spread evenly, and nearly every record has one of its own")
    return None


def words_tell_apart(places: npt.NDArray[np.int64], words: int) -> Sign | None:
    """
    Args:
        places: [records] of each record's word in the list, without missing ones.
        words: How many the list has.
    """
    records, distinct = len(places), len(np.unique(places))
    if records < _FEW_RECORDS or distinct < _OWN_WORD * records:
        return None
    if records < _MANY_WORDS and not _repeats_too_rarely(distinct, records, words):
        return None
    return Sign("near-unique", "nearly every record has a word of its own")


def _repeats_too_rarely(distinct: int, records: int, places: int) -> bool:
    """Measured values repeat at least as often as ones drawn evenly from the same places (the birthday problem)."""
    empty = places * math.exp(records * math.log1p(-1 / places)) if places > 1 else 0.0
    repeats = records - (places - empty)
    deviation = math.sqrt(repeats) if places > 10 * records else _occupancy_deviation(places, records)
    return repeats - (records - distinct) > _DEVIATIONS * deviation > 0


def _occupancy_deviation(places: int, records: int) -> float:
    """Of the number of places that stay empty when each record is put into one of them at random."""
    one, two = (1 - 1 / places) ** records, (1 - 2 / places) ** records
    return math.sqrt(max(places * (places - 1) * two + places * one - (places * one) ** 2, 0.0))


def _fills_its_block(distinct: Vector) -> bool:
    """Random record numbers do. Quantities of so many digits are heaped somewhere."""
    low, high = str(int(distinct[0])), str(int(distinct[-1]))
    if len(low) != len(high) or len(low) < _WIDE:
        return False
    if len(distinct) >= _EVEN_IN_SPAN and _even((distinct - distinct[0]) / (distinct[-1] - distinct[0])):
        return True
    same = next(at for at, (one, other) in enumerate(zip(low, high, strict=True)) if one != other)
    numbers = 10.0 ** (len(low) - same)
    first, last = (int(low[:same]) * numbers, numbers) if same else (numbers / 10, 0.9 * numbers)
    return len(distinct) >= _EVEN_IN_BLOCK and _even((distinct - first) / last)


def _even(shares: Vector) -> bool:
    """Kolmogorov's test of sorted shares against an even spread from 0 to 1."""
    count = len(shares)
    steps = np.arange(count + 1) / count
    distance = max((steps[1:] - shares).max(), (shares - steps[:-1]).max())
    return bool(distance < _KOLMOGOROV / math.sqrt(count))
