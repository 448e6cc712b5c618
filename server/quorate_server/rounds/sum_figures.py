"""What a run tells monitoring of its sums: seconds that the server itself needed, and what became of secure ones."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from quorate.rounds.run import SumOutcome, SumStep


@dataclass(frozen=True, slots=True)
class SumFigures:
    """Valid once built.

    Args:
        outcomes: Of attempts at secure sums that ended now.
        seconds: Of one attempt at a sum that is over, by step.
    """

    outcomes: tuple[SumOutcome, ...] = ()
    seconds: Mapping[SumStep, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(math.isfinite(taken) and taken >= 0 for taken in self.seconds.values()):
            raise ValueError("a step of a sum took a time that nothing can take")

    def to_json(self) -> bytes:
        return json.dumps({"outcomes": self.outcomes, "seconds": dict(self.seconds)}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Raises ValueError, KeyError, TypeError, AttributeError: the worker says something else."""
        said = json.loads(text)
        seconds = {SumStep(step): float(taken) for step, taken in said["seconds"].items()}
        return cls(tuple(map(SumOutcome, said["outcomes"])), seconds)


class Stopwatch:
    """Seconds by step, without those in which sites are waited for.

    Of steps that lie in each other each second counts once, for the innermost.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._seconds: defaultdict[SumStep, float] = defaultdict(float)
        self._counted_s = 0.0

    @contextmanager
    def on(self, step: SumStep) -> Iterator[None]:
        began_s, counted_s = self._now(), self._counted_s
        try:
            yield
        finally:
            took_s = self._now() - began_s
            self._seconds[step] += took_s - (self._counted_s - counted_s)
            self._counted_s = counted_s + took_s

    def read(self) -> dict[SumStep, float]:
        """What it has counted since it was read last; 0 for a step that there was none of."""
        seconds = {step: max(0.0, self._seconds[step]) for step in SumStep}
        self._seconds.clear()
        return seconds
