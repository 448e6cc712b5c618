"""Which sums of one input may exist together, by whose uploads are in them.

Two sets of survivors that differ in at least k + 2 sites and share at least k + 2 tell, together with what k colluders
know, of no fewer than two others; so do three such sets, and of one input no more than three can be opened
(``quorate_client/rounds/sums/votes.py`` says why).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Set
from typing import Final

MAX_SETS: Final = 2
"""For so many sets of one input a site votes."""


def go_together(one: Set[Hashable], other: Set[Hashable], colluders: int) -> bool:
    """Whether sums over both may be opened."""
    return len(one ^ other) >= colluders + 2 and len(one & other) >= colluders + 2


def may_vote(wanted: frozenset[Hashable], earlier: Collection[frozenset[Hashable]], colluders: int) -> bool:
    """Whether a site that voted for these sets of one input may vote for another one."""
    others = set(earlier) - {wanted}
    is_new = wanted not in earlier
    return not (is_new and len(others) >= MAX_SETS) and all(go_together(wanted, old, colluders) for old in others)
