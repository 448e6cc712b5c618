"""Whether a file holds records that were made and not observed: no such file is registered as real, nor made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.errors import DataError, InputError
from quorate_client.approval.datasets import Datasets
from quorate_client.site.folder import SiteFolder
from quorate_client.synthetic.kept import all_kept
from quorate_client.synthetic.marking.lineage import COLUMN, mark_in
from quorate_client.synthetic.marking.watermark import FOUND_Z, Finding, find
from quorate_client.synthetic.request import known_watermark_key
from quorate_client.tasks.data.schema import TabularSchema, parse_schema, read_schema
from quorate_client.tasks.data.table import read_table

_TABLES = (".csv", ".parquet")


def require_real(path: Path, schema: Mapping[str, Any], site: SiteFolder) -> None:
    """Refuse a file that says it is synthetic, whoever made it, or that carries this site's watermark.

    Raises:
        InputError: it is one. DataError, SchemaError: it cannot be read.
    """
    if path.suffix.lower() not in _TABLES or not path.is_file():
        return
    mark = mark_in(path)
    if mark is None:
        found = _watermark(path, schema, site)
        mark = None if found is None or not found.is_ours else f"the watermark of this site, z = {found.z:.1f}"
    if mark is not None:
        raise InputError(
            f"{path} holds synthetic records, which are not registered as real ones",
            expected="records of people",
            got=mark,
            action="Make synthetic data sets with `quorate-client synthetic make`: studies name them as what they are",
        )


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found in a file.

    Args:
        mark: The short id that it carries.
        name: Of the set here that has that id.
        watermark: None where no schema here fits the file, or nothing was ever made here.
        was_made_here: Whether anything was.
    """

    mark: str | None
    name: str | None
    watermark: Finding | None
    was_made_here: bool

    @property
    def is_ours(self) -> bool:
        return self.name is not None or (self.watermark is not None and self.watermark.is_ours)

    def to_json(self) -> dict[str, Any]:
        found = self.watermark
        return {
            "is_ours": self.is_ours,
            "mark": self.mark,
            "name": self.name,
            "watermark": None if found is None else {"distinct": found.distinct, "green": found.green, "z": found.z},
        }

    def in_words(self) -> Iterator[str]:
        if self.mark is None:
            yield "It carries no mark of a synthetic data set."
        else:
            whose = f"which is {self.name} of this site" if self.name else "which no set of this site has now"
            yield f"It carries the mark {self.mark}, {whose}."
        if self.watermark is None:
            why = (
                "its columns are those of no set that is here: name a --schema"
                if self.was_made_here
                else "none was made"
            )
            yield f"Its rows were not looked at for the watermark of this site: {why}."
            return
        verdict = "made here" if self.watermark.is_ours else "which does not show that it was made here"
        yield (
            f"Watermark: {self.watermark.green} of {self.watermark.distinct} distinct rows, z = {self.watermark.z:.1f} "
            f"where chance stays below {FOUND_Z:g}: {verdict}."
        )


def examine(path: Path, site: SiteFolder, datasets: Datasets, schema: Path | None) -> Examined:
    """Look for mark and watermark.

    Args:
        schema: Of the file's columns; None: whichever of the sets here fits.

    Raises:
        DataError, SchemaError: the file or its schema cannot be read.
    """
    if path.suffix.lower() not in _TABLES:
        raise InputError("Only tables are made here", expected="a file named .csv or .parquet", got=path.name)
    mark = mark_in(path)
    here = {_id_of(each.lineage()): each.dataset.name for each in all_kept(datasets)} if mark else {}
    return Examined(
        mark, here.get(mark or ""), _looked_for(path, site, datasets, schema), known_watermark_key(site) is not None
    )


def _looked_for(path: Path, site: SiteFolder, datasets: Datasets, schema: Path | None) -> Finding | None:
    if schema is not None:
        return _watermark(path, read_schema(schema), site)
    for each in all_kept(datasets):
        try:
            return _watermark(path, each.dataset.schema, site)
        except DataError:
            continue
    return None


def _id_of(lineage: Mapping[str, Any]) -> str:
    return str(lineage["id"])


def _watermark(path: Path, schema: Mapping[str, Any], site: SiteFolder) -> Finding | None:
    """None where nothing was ever made here. Raises DataError where the file does not fit the schema."""
    key = known_watermark_key(site)
    parsed = parse_schema(schema, f"The schema of {path}")
    if key is None or not isinstance(parsed, TabularSchema):
        return None
    return find(key, parsed, read_table(path, _with_mark(parsed)))


def _with_mark(schema: TabularSchema) -> TabularSchema:
    """The column of the mark may be there or not."""
    if COLUMN in schema.file.ignore:
        return schema
    return schema.model_copy(update={"file": schema.file.model_copy(update={"ignore": (*schema.file.ignore, COLUMN)})})
