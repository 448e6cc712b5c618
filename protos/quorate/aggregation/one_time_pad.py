"""One-time padding of small integers: counts, weights and tags travel as v + s mod q, exact and without lanes.

s is uniform below q, drawn by ``rlwe.uniform`` for one round and used for nothing else, so that a padded word says
nothing at all about v. Padded words add up as the integers and the keys do; whoever gets the sum of the keys (from
shares, see ``shares``) reads the sum and no single value.

Sums must stay within q/2 in size; they are read modulo q. The sender has to see to that: 2^51 is enough for 2^20 sites
with counts of 2^30. Tags may wrap, for they are meant modulo q.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quorate.aggregation import ring
from quorate.errors import ContributionError

Words = npt.NDArray[np.uint64]

MAX_VALUE = (ring.MODULUS - 1) // 2


def mask(values: Sequence[int], key_words: Words) -> Words:
    """The padded values, uint64[m].

    Args:
        values: m integers of at most q/2 in size.
        key_words: uint64[m], uniform below q, fresh.

    Raises:
        ContributionError: a value is too large or not an integer, or there is not one key word for each.
    """
    if not all(isinstance(value, int) and abs(value) <= MAX_VALUE for value in values):
        raise ContributionError("A value to be padded is out of range", expected="an integer of at most q/2 in size")
    _check_words(key_words, len(values))
    masked = np.array([value % ring.MODULUS for value in values], dtype=np.uint64)
    ring.add(masked, key_words)
    return masked


def unmask(total: Words, key_sum: Words) -> tuple[int, ...]:
    """The sum of the values, each between -q/2 and q/2.

    Args:
        total: uint64[m], the padded values of all sites, added modulo q.
        key_sum: uint64[m], their key words, added modulo q.

    Raises:
        ContributionError: unequal lengths, or a word that is not below q.
    """
    _check_words(total, len(key_sum))
    _check_words(key_sum, len(total))
    difference = total.copy()
    ring.subtract(difference, key_sum)
    return tuple(ring.centred(difference).tolist())


def _check_words(words: Words, count: int) -> None:
    if words.dtype != np.uint64 or words.shape != (count,) or bool((words >= ring.MODULUS).any()):
        raise ContributionError("Padded words or their keys have the wrong form", expected=f"{count} words below q")
