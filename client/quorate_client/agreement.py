"""What a site's administrator agreed to: a study, to be done on one registered data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quorate.identity import SiteName
from quorate.study import Study


@dataclass(frozen=True, slots=True)
class Dataset:
    """A registered data set: where it lies, what shape it must have, and how it is split.

    ``schema`` is the parsed schema file. The test part is a fixed pseudo-random ``test_fraction`` of the records,
    chosen by the data set's name and the record's number, the same at every start.
    """

    name: str
    kind: Literal["tabular", "images"]
    path: Path
    schema: dict[str, Any]
    test_fraction: float
    records: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """A study that this site approved, with the data set it may use. ``dataset`` is None for a guest app."""

    study: Study
    digest: bytes
    site: SiteName
    dataset: Dataset | None
    node_config: dict[str, str | int | float | bool]
