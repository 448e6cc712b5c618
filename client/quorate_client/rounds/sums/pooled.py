"""What a run's sums told beside the model, as every site has it, and what of it the operator is told.

It is part of the state on which the sites agree: who was told other totals is in another state, and who joins by a
checkpoint knows what the others know.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from operator import index

from quorate.errors import BaseModelMismatchError
from quorate.identity import SiteName
from quorate.rounds.rates import pooled_rates
from quorate.study.study import Study

DIGITS = 3
MAX_TOLD = 1000
"""Sets of survivors over which rates are told in one run. Over further ones nothing is told."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """The totals.

    Args:
        statistics: Of the first sum: all training records, then the task's own.
        counted: The sites in them.
        told: The sets of survivors over which rates were told.
    """

    statistics: tuple[int, ...]
    counted: frozenset[SiteName]
    told: tuple[frozenset[SiteName], ...] = ()

    def may_tell(self, survivors: Collection[SiteName]) -> bool:
        """Whether rates over these sites may be told: over the same sites as earlier ones, or over at least two others.

        A single one's rates would follow from the difference.
        """
        now = frozenset(survivors)
        return now in self.told or (len(self.told) < MAX_TOLD and all(len(now ^ old) > 1 for old in self.told))

    def having_told(self, survivors: Collection[SiteName]) -> Pooled:
        """After rates over these sites were told, if they may be."""
        now = frozenset(survivors)
        return replace(self, told=(*self.told, now)) if now not in self.told and self.may_tell(now) else self

    def to_bytes(self, sites: Sequence[SiteName]) -> bytes:
        """Of the study's sites, in order, those in a set are the ones among its bits."""

        def bits(members: frozenset[SiteName]) -> int:
            return sum(1 << place for place, site in enumerate(sites) if site in members)

        content = [self.statistics, bits(self.counted), [bits(members) for members in self.told]]
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes, sites: Sequence[SiteName]) -> Pooled:
        """Raises BaseModelMismatchError: not what ``to_bytes`` gives of totals that sites can have."""

        def members(bits: int) -> frozenset[SiteName]:
            return frozenset(site for place, site in enumerate(sites) if bits >> place & 1)

        try:
            statistics, counted, told = json.loads(content)
            pooled = cls(tuple(map(index, statistics)), members(counted), tuple(map(members, told)))
        except (ValueError, TypeError, RecursionError) as error:
            raise BaseModelMismatchError("What a state holds beside its model cannot be read") from error
        if not pooled.statistics or pooled.statistics[0] < 1 or max(map(abs, pooled.statistics)) >= 2**63:
            raise BaseModelMismatchError("What a state holds beside its model are not the totals of sites with records")
        return pooled


class PooledRates:
    """The counts of the last sums, where their rates may be told."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._counts: dict[int, tuple[int, ...]] = {}

    def learn(self, round_number: int, counts: tuple[int, ...]) -> None:
        """What a sum said beside the model."""
        self._counts[round_number] = counts
        for old in [number for number in self._counts if number < round_number - 2]:
            del self._counts[old]

    def told(self) -> dict[int, dict[str, float]]:
        """What the operator is told of the last rounds: rates of all sites together, rounded, and no counts."""
        told: dict[int, dict[str, float]] = {}
        for sum_number, counts in self._counts.items():
            for number, rates in pooled_rates(self._study, sum_number, counts).items():
                told.setdefault(number, {}).update({name: round(rate, DIGITS) for name, rate in rates.items()})
        return told
