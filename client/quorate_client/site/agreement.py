"""What a site's administrator agreed to: a study, to be done on one registered data set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from quorate.identity import SiteName
from quorate.study.study import Study


@dataclass(frozen=True, slots=True)
class Dataset:
    """A registered data set: where it lies, what shape it must have, and how it is split.

    Args:
        schema: The parsed schema file.
        test_fraction: The share that is held out, by the records' fingerprints (``record_index.py``).
        units: To how many units (patients, say) the records belong, where the schema names them; None where each record
            is a unit of its own.
        content: Digest of the file, in hex, when it was registered.
        index: The file of the records' fingerprints.
    """

    name: str
    kind: Literal["tabular", "images"]
    path: Path
    schema: dict[str, Any]
    test_fraction: float
    records: int
    units: int | None = None
    content: str = ""
    index: Path | None = None

    @property
    def unit(self) -> Literal["record", "unit"]:
        """What privacy is promised to: one record, or one unit with all its records. All that is told of it."""
        return "record" if self.units is None else "unit"

    @property
    def identity(self) -> str:
        """Another one whenever something was registered otherwise: the file, what is held out, whose a record is."""
        return hashlib.sha256(json.dumps(self.to_plain(), sort_keys=True).encode()).hexdigest()

    def to_plain(self) -> dict[str, Any]:
        """JSON values. The schema is this one's own, not a copy: it is asked for with each instruction."""
        index = None if self.index is None else str(self.index.absolute())
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"path": str(self.path.absolute()), "index": index}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """What ``to_plain`` gave. Raises KeyError or TypeError where it is not that."""
        index = values.get("index")
        return cls(**values | {"path": Path(values["path"]), "index": None if index is None else Path(index)})


@dataclass(frozen=True, slots=True)
class Agreement:
    """A study that this site approved, with the data set it may use. ``dataset`` is None for a guest app."""

    study: Study
    digest: bytes
    site: SiteName
    dataset: Dataset | None
    node_config: dict[str, str | int | float | bool]
