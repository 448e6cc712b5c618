"""The synthetic data sets that a site keeps, each a folder with its records, its report and its lineage.

A set is made in a folder of its own that is renamed at the end, and comes into the site's database after that: what has
no row there is a leftover of somebody who was interrupted, and nobody lists, uses or exports it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.errors import AlreadyExistsError, InputError, NotFoundError, StorageError
from quorate.process.folder_lock import held
from quorate.process.private_files import create_private, flush_folder, no_folder, write_private
from quorate_client.approval.datasets import Datasets
from quorate_client.site.agreement import Dataset, Origin
from quorate_client.site.folder import SiteFolder
from quorate_client.synthetic.marking.lineage import write_csv, write_parquet
from quorate_client.tasks.data.record_index import content_digest
from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table, read_table

RECORDS, REPORT, PAGE, LINEAGE = "records.csv", "report.json", "report.html", "lineage.json"
SALT = "salt"
"""Stands in the report's file, so that its digest in the lineage tells nothing to whoever tries out what is in it."""
_IN_PROGRESS = "synthetic-in-progress"
_LOCK = "synthetic.lock"
_RESTORE = "Restore synthetic/ from a backup, or remove the data set and make it again: the same request costs nothing"


@dataclass(frozen=True, slots=True)
class Kept:
    """A set that was made here and is registered."""

    dataset: Dataset
    origin: Origin

    @property
    def folder(self) -> Path:
        return self.dataset.path.parent

    @property
    def schema(self) -> TabularSchema:
        return schema_of(self.dataset)

    def report(self) -> dict[str, Any]:
        """The report's figures, which are those that were found of the set. Raises StorageError."""
        content = self._read(REPORT)
        if hashlib.sha256(content).hexdigest() != self.origin.report:
            raise self._damaged(REPORT)
        report: dict[str, Any] = json.loads(content)
        del report[SALT]
        return report

    def lineage(self) -> dict[str, Any]:
        """Raises StorageError."""
        content = self._read(LINEAGE)
        if hashlib.sha256(content).hexdigest() != self.origin.lineage:
            raise self._damaged(LINEAGE)
        lineage: dict[str, Any] = json.loads(content)
        return lineage

    @property
    def is_whole(self) -> bool:
        """Whether all of its files are there, as they were made."""
        try:
            self.require_whole()
        except StorageError:
            return False
        return True

    def require_whole(self) -> None:
        """Raises StorageError where a file is gone or is not what was made."""
        self.report()
        self.lineage()
        path = self.dataset.path
        if not path.exists() or content_digest(path) != self.dataset.content:
            raise self._damaged(RECORDS)

    def export(self, target: Path) -> None:
        """Copy the records to a new file, marked as what they are. Whether they may be used is another question.

        Raises:
            InputError: neither CSV nor Parquet. AlreadyExistsError. NotFoundError: its folder is not there.
            StorageError: it is not what was made.
        """
        if target.suffix.lower() not in (".csv", ".parquet"):
            raise InputError("Records are exported as CSV or as Parquet", expected=".csv or .parquet", got=target.name)
        if target.exists():
            raise AlreadyExistsError(f"{target} exists already", action="Name another file with -o")
        if not target.parent.is_dir():
            raise no_folder(target)
        self.require_whole()
        scratch = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
        try:
            if target.suffix.lower() == ".csv":
                shutil.copyfile(self.dataset.path, scratch)
            else:
                write_parquet(scratch, self.schema, read_table(self.dataset.path, self.schema), self.lineage())
            scratch.rename(target)
        finally:
            scratch.unlink(missing_ok=True)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            raise self._damaged(name) from None

    def _damaged(self, name: str) -> StorageError:
        return StorageError(
            f"{self.folder / name} is not what was made with the synthetic data set {self.dataset.name}",
            action=_RESTORE,
        )


def find(datasets: Datasets, name: str) -> Kept:
    """Raises NotFoundError: there is no such set, or it is a real one."""
    dataset = datasets.find(name)
    if dataset is None or dataset.origin is None:
        raise NotFoundError(
            f"There is no synthetic data set {name}" + ("" if dataset is None else ": it holds real records"),
            expected=", ".join(each.dataset.name for each in all_kept(datasets)) or "none was made yet",
            action="See `quorate-client synthetic list`",
        )
    return Kept(dataset, dataset.origin)


def all_kept(datasets: Datasets) -> list[Kept]:
    return [Kept(each, each.origin) for each in datasets.all() if each.origin is not None]


def schema_of(dataset: Dataset) -> TabularSchema:
    """Raises InputError where it describes no table."""
    schema = parse_schema(dataset.schema, f"The schema of the data set {dataset.name}")
    if not isinstance(schema, TabularSchema):
        raise InputError(f"The data set {dataset.name} holds images", expected="a table: only tables are made")
    return schema


def leftovers(site: SiteFolder, datasets: Datasets) -> list[Path]:
    """Folders of sets that nobody finished, or that were taken out of the database."""
    kept = {each.folder for each in all_kept(datasets)}
    found = sorted(site.synthetic.iterdir()) if site.synthetic.is_dir() else []
    return [each for each in found if each.is_dir() and each.resolve() not in kept]


# --- making ---


@contextmanager
def alone(site: SiteFolder) -> Iterator[None]:
    """One set at a time is made at a site, and none while a data set is removed. Raises WrongStateError."""
    with held(
        site.root / _LOCK,
        what="A synthetic data set is being made, or a data set removed, at this site",
        action="Wait until it is finished",
    ):
        yield


def clear_place(site: SiteFolder, datasets: Datasets, name: str) -> list[str]:
    """Take away what an interrupted make left, and unfinished files of this name. Returns what it was, in words."""
    told = []
    if (site.root / _IN_PROGRESS).is_dir():
        shutil.rmtree(site.root / _IN_PROGRESS)
        told.append("files that an interrupted make left were taken away")
    if any(each.name == name for each in leftovers(site, datasets)):
        shutil.rmtree(site.synthetic / name)
        told.append(f"files named {name} that nobody had finished were taken away")
    return told


@contextmanager
def workplace(site: SiteFolder) -> Iterator[Path]:
    """A folder to write into; it is gone afterwards unless ``put_in_place`` took it."""
    folder = site.root / _IN_PROGRESS
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_records(folder: Path, schema: TabularSchema, table: Table, mark: str) -> str:
    """Returns the file's digest."""
    path = folder / RECORDS
    with os.fdopen(create_private(path), "wb") as file:
        write_csv(file, schema, table, mark)
        file.flush()
        os.fsync(file.fileno())
    return content_digest(path)


def write_told(folder: Path, report: bytes, page: str, lineage: Mapping[str, Any]) -> None:
    write_private(folder / REPORT, report)
    write_private(folder / PAGE, page.encode())
    write_private(folder / LINEAGE, written(lineage))


def written(lineage: Mapping[str, Any]) -> bytes:
    """As its file has it."""
    return json.dumps(lineage, indent=2, sort_keys=True).encode() + b"\n"


def put_in_place(site: SiteFolder, folder: Path, name: str) -> None:
    """From here on the files of a set are whole."""
    site.synthetic.mkdir(mode=0o700, exist_ok=True)
    folder.rename(site.synthetic / name)
    flush_folder(site.synthetic)
