"""What a generation releases of one unit, decided before any record is read.

All that is measured are Gaussian sums whose noise is fixed here, so the total is one Gaussian release: with 1/sigma^2
the sum of all 1/sigma_i^2. Which sums are taken depends on earlier ones, how much noise they carry does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quorate.privacy.accounting import noise_multiplier_for
from quorate.privacy.events import Event
from quorate_client.tasks.data.schema import TabularSchema

_MARGINS, _LABELLED, _STRUCTURE, _PAIRS = 0.15, 0.30, 0.05, 0.50
_LABEL_WEIGHT = 4
"""The label counts like so many columns: all else builds on it."""


@dataclass(frozen=True, slots=True)
class NoiseMultipliers:
    """For each stage the noise's standard deviation over the sensitivity of all its sums together; 0 without privacy.

    Args:
        label: How many records have each class.
        columns: How many have each cell of a column.
        labelled: Class by column.
        structure: Which columns go together.
        pairs: Class by two columns, and class by column again.
    """

    label: float = 0.0
    columns: float = 0.0
    labelled: float = 0.0
    structure: float = 0.0
    pairs: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a generation promises, and with which noise.

    Args:
        events: What it releases of one unit; empty without privacy.
    """

    epsilon: float | None
    delta: float
    noise: NoiseMultipliers
    events: tuple[Event, ...]


def plan(schema: TabularSchema, epsilon: float | None, delta: float) -> Plan:
    """The plan for tables of a schema.

    Args:
        epsilon: For one unit that is added or removed; None for a generation without privacy.

    Raises:
        PrivacyRefusedError: no noise keeps this promise.
    """
    if epsilon is None:
        return Plan(None, delta, NoiseMultipliers(), ())
    total = noise_multiplier_for(epsilon, delta, 1.0, 1)
    columns = len(schema.columns)
    label = _MARGINS * _LABEL_WEIGHT / (columns + _LABEL_WEIGHT)
    shares = (label, _MARGINS - label, _LABELLED, _STRUCTURE, _PAIRS)
    noise = NoiseMultipliers(*(total / math.sqrt(share) for share in shares))
    events = (noise.label, noise.columns, noise.labelled, noise.structure, noise.pairs)
    return Plan(epsilon, delta, noise, tuple(Event(multiplier) for multiplier in events))
