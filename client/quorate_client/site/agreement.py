"""What a site's administrator agreed to: a study, to be done on one registered data set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from quorate.errors import SyntheticRefusedError
from quorate.identity import SiteName
from quorate.study.study import Study, TrainingData


@dataclass(frozen=True, slots=True)
class Dataset:
    """A registered data set: where it lies, what shape it must have, and how it is split.

    A synthetic one has no records of anybody: ``path`` is the file that was made, and what is held out is its source's.

    Args:
        schema: The parsed schema file.
        test_fraction: The share that is held out, by the records' fingerprints (``record_index.py``).
        units: To how many units (patients, say) the records belong, where the schema names them; None where each record
            is a unit of its own.
        content: Digest of the file, in hex, when it was registered.
        index: The file of the records' fingerprints. None for a synthetic data set: nobody's records are in it.
        origin: Of a synthetic data set, what it was made from, and how; None for a real one.
        training: What the study in hand trains on, which its agreement sets: the file, or with an origin the file made
            in the place of its source, or beside it.
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
    origin: Origin | None = None
    training: TrainingData = "real"

    def __post_init__(self) -> None:
        if self.origin is None and self.training != "real":
            raise ValueError(f"a real data set has no {self.training} records")
        if self.origin is not None and self.index is not None:
            raise ValueError("nobody's records are in a synthetic data set: it has no fingerprints")

    @property
    def source(self) -> Dataset:
        """Whose records it is about: itself, or of a synthetic one what it was made from."""
        return self if self.origin is None else self.origin.source

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
        values |= {"path": str(self.path.absolute()), "index": index}
        if self.origin is None:  # as before there were synthetic data sets: a real one stays the one that it was
            del values["origin"], values["training"]
            return values
        return values | {"origin": self.origin.to_plain()}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """What ``to_plain`` gave. Raises KeyError, TypeError or ValueError where it is not that."""
        index, origin = values.get("index"), values.get("origin")
        return cls(
            **values
            | {
                "path": Path(values["path"]),
                "index": None if index is None else Path(index),
                "origin": None if origin is None else Origin.from_plain(origin),
            }
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """Of a synthetic data set: what it was made from, how, and what was found of it before anybody used it.

    Args:
        source: The real data set that was registered then, as it was.
        generator: Its name and version.
        epsilon: What making it cost the source's training records, at ``delta``; None where nothing bounds it.
        seed_commitment: SHA-256, in hex, of the seed that only the site has.
        risks: What its report found somebody to learn of the source's records, by kind: advantages over a guess that
            knows nothing of them, 0 to 1.
        utility_loss: How much area under the curve a model loses that is trained on it in the source's place.
        report: SHA-256, in hex, of the file ``report.json`` beside the data set's.
        lineage: The same of ``lineage.json``, which goes wherever the records go.
    """

    source: Dataset
    generator: str
    epsilon: float | None
    delta: float
    seed_commitment: str
    made_unix_s: float
    risks: dict[str, float]
    utility_loss: float
    report: str
    lineage: str

    def __post_init__(self) -> None:
        if self.source.origin is not None:
            raise ValueError("a synthetic data set is not made from a synthetic one")

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"source": self.source.to_plain()}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """What ``to_plain`` gave. Raises KeyError, TypeError or ValueError where it is not that."""
        return cls(**values | {"source": Dataset.from_plain(values["source"])})


@dataclass(frozen=True, slots=True)
class Agreement:
    """A study that this site approved, with the data set it may use (``for_study``); None for a guest app."""

    study: Study
    digest: bytes
    site: SiteName
    dataset: Dataset | None
    node_config: dict[str, str | int | float | bool]


def is_of_kind(dataset: Dataset, study: Study) -> bool:
    """Whether a data set is synthetic where the study trains on synthetic records, and real where it does not."""
    return (dataset.origin is not None) == (study.training_data != "real")


def for_study(dataset: Dataset, study: Study) -> Dataset:
    """The data set with what the study trains on. That is the approved study's to say, and nobody else's.

    Raises:
        SyntheticRefusedError: it is of the other kind.
    """
    if not is_of_kind(dataset, study):
        wanted, kind = ("synthetic", "real") if dataset.origin is None else ("real", "synthetic")
        raise SyntheticRefusedError(
            f"The data set {dataset.name} is not of the kind that the study {study.name} trains on",
            expected=f'a {wanted} one, for training_data = "{study.training_data}"',
            got=f"a {kind} one",
            action="Name another data set with `quorate-client approve --dataset`; `quorate-client data list` shows "
            "which are synthetic",
        )
    return replace(dataset, training=study.training_data)
