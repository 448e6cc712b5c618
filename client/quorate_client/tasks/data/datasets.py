"""A site's data sets: registering one, splitting off its test part, and loading it for a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, assert_never

from quorate.errors import DataError, PrivacyUnsupportedError
from quorate.identity import parse_name
from quorate_client.site.agreement import Dataset
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks.data import fingerprints
from quorate_client.tasks.data.images import Images, read_image_units, read_images
from quorate_client.tasks.data.record_index import (
    RecordIndex,
    content_digest,
    file_digest,
    read_index,
    records_key,
    write_index,
)
from quorate_client.tasks.data.schema import ImageSchema, Schema, TabularSchema, parse_schema, schema_dict
from quorate_client.tasks.data.schema_fit import require_fit
from quorate_client.tasks.data.table import Table, read_table, read_units

MIN_UNITS = 2
"""Units of the training and of the test part each."""


def register(name: str, path: Path, schema: Mapping[str, Any], test_fraction: float, site: SiteFolder) -> Dataset:
    """Check a file or folder against a schema, record by record, and describe it as a data set.

    Args:
        name: What studies will call it at this site.
        path: A .csv, .parquet or .npz file, or a folder with one folder of images for each class.
        schema: The parsed schema (``read_schema``).
        test_fraction: The share of units that is kept for evaluation, above 0 and below 1.
        site: Its folder of fingerprints gets a file, and is all that is written to. Whose account it is, is another
            question (``Ledger.register``).

    Raises:
        InputError: the name is not valid. SchemaError: the schema is not. DataError: the data do not fit, named by
            row and column numbers, or too few units are left to train or to evaluate on. WrongStateError: the key of
            the fingerprints is gone.
    """
    parse_name(name, "data set")
    if not 0 < test_fraction < 1:
        raise DataError("The test part must be a share of the records", expected="above 0 and below 1")
    parsed = parse_schema(schema, f"The schema of the data set {name}")
    key = records_key(site.keys, site.records)
    kind: Literal["tabular", "images"]
    match parsed:
        case TabularSchema():
            with _held(path) as (file, content):
                kind, table = "tabular", read_table(path, parsed, file)
                units = read_units(path, parsed, parsed.file.unit, file) if parsed.file.unit is not None else None
            columns, records = fingerprints.table_columns(parsed), fingerprints.of_table(key, parsed, table)
        case ImageSchema():
            content = _digest(path)
            kind, images = "images", read_images(path, parsed)
            columns, records = fingerprints.image_columns(images), fingerprints.of_images(key, images)
            units = read_image_units(path, parsed.file.unit) if parsed.file.unit is not None else None
        case _:
            assert_never(parsed)
    check = fingerprints.key_check(key)
    index = RecordIndex(columns, test_fraction, check, records, _of_units(key, path, units, len(records)))
    trained_on, held_out = index.counts
    if min(trained_on, held_out) < MIN_UNITS:
        what = "records" if units is None else "units"
        raise DataError(
            f"{path} leaves too few {what} for training or for evaluation",
            expected=f"at least {MIN_UNITS} of each",
            got=f"{trained_on} and {held_out} of {trained_on + held_out}",
            action="Add records or change the test fraction",
        )
    number_of_units = None if units is None else trained_on + held_out
    described = Dataset(name, kind, path.resolve(), schema_dict(parsed), test_fraction, len(records), number_of_units)
    return replace(described, content=content, index=write_index(site.records, index))


def load_table(dataset: Dataset, wanted: TabularSchema) -> tuple[Table, Table]:
    """The training and the test part of a registered table, with the columns of a study's schema.

    Of a synthetic one the test part is its source's held-out records, and the training part what was made: instead of
    the source's training part, or after it. No unit has made records, and so nobody draws units from them.

    Raises:
        SchemaError: the data set does not have what the study asks for. DataError: it is not what was registered, or
            synthetic where real records are meant.
    """
    if dataset.training == "real":
        return _parts(dataset, wanted)
    training, test = _parts(dataset.source, wanted)
    made = _read(dataset, wanted)
    return (made if dataset.training == "synthetic" else training.followed_by(made)), test


def _parts(dataset: Dataset, wanted: TabularSchema) -> tuple[Table, Table]:
    """The training and the test part of a real data set."""
    index, table = index_of(dataset)[0], _read(dataset, wanted)
    table = Table(table.columns, table.labels, index.unit_numbers)
    return table.part(~index.held_out), table.part(index.held_out)


def _read(dataset: Dataset, wanted: TabularSchema) -> Table:
    offered = require_fit(_schema(dataset), wanted, dataset.name)
    used = {column.name for column in wanted.columns}
    unused = tuple(column.name for column in offered.columns if column.name not in used)
    file = offered.file.model_copy(update={"ignore": (*offered.file.ignore, *unused)})
    with _held(dataset.path) as (content, digest):
        _require_registered(dataset, digest)
        return read_table(dataset.path, wanted.model_copy(update={"file": file}), content)


@contextmanager
def _held(path: Path) -> Iterator[tuple[BufferedReader, str]]:
    """A file, open, and its digest, which is that of all that is read of it here.

    Whoever puts another file in its place meanwhile is not noticed, and need not be; whoever writes into this one is.

    Raises:
        DataError: it cannot be read, or was changed meanwhile.
    """
    try:
        with path.open("rb") as file:
            digest = file_digest(file)
            yield file, digest
            if file_digest(file) != digest:
                raise DataError(f"{path} was changed while it was read", action="Repeat it when nobody writes into it")
    except OSError as error:
        raise DataError(f"Cannot read {path}", got=error.strerror or "a damaged file") from None


def load_images(dataset: Dataset, wanted: ImageSchema) -> tuple[Images, Images]:
    """The training and the test part of registered images. Raises as ``load_table`` does."""
    offered = require_fit(_schema(dataset), wanted, dataset.name)
    index = unchanged_index(dataset)
    images = read_images(dataset.path, offered)
    images = Images(images.pixels, images.labels, index.unit_numbers)
    return images.part(~index.held_out), images.part(index.held_out)


def unchanged_index(dataset: Dataset) -> RecordIndex:
    """What is known of a data set's records, after its file was found to be the one that was registered.

    Raises:
        DataError: it is another one: nobody would know whose records are in it.
    """
    require_unchanged(dataset)
    return index_of(dataset)[0]


def require_unchanged(dataset: Dataset) -> None:
    """Raises DataError: a data set's file is not the one that was registered."""
    _require_registered(dataset, _digest(dataset.path))


def _require_registered(dataset: Dataset, digest: str) -> None:
    if digest != dataset.content:
        again = "make it again" if dataset.origin else "`quorate-client data add`"
        raise DataError(
            f"The data set {dataset.name} has changed since it was registered",
            expected=f"the file with its {dataset.records} records, byte by byte",
            action=f"Register it again: `quorate-client data remove`, then {again}",
        )


def units_trained_on(dataset: Dataset, records: int) -> int:
    """From how many units DP-SGD draws: records, or where the data set names units, units of the training part.

    Args:
        records: Of the training part, as a task says. It is not believed: one that balances classes has some of them
            more than once, and each is drawn more often than the account says.

    Raises:
        DataError: the fingerprints are gone. PrivacyUnsupportedError: the task has other records.
    """
    units = index_of(dataset)[0].counts[0]
    if dataset.units is None and records != units:
        raise PrivacyUnsupportedError(
            "The task has other records than the data set's training part",
            expected=f"{units} records, each of them once",
            got=f"{records}",
            action="Have the operator take a task that neither repeats nor leaves out records",
        )
    return units


def index_of(dataset: Dataset) -> tuple[RecordIndex, Path]:
    if dataset.origin is not None:
        raise DataError(f"{dataset.name} is a synthetic data set: nobody's records are in it, and none is held out")
    if dataset.index is None:
        raise DataError(f"The records of the data set {dataset.name} have no fingerprints", action="Register it again")
    return read_index(dataset.index), dataset.index


def _of_units(key: bytes, path: Path, units: Sequence[str] | None, records: int) -> fingerprints.Fingerprints | None:
    if units is not None and len(units) != records:
        raise DataError(f"{path} does not say of each record whose it is", expected=str(records), got=str(len(units)))
    return None if units is None else fingerprints.of_units(key, units)


def _digest(path: Path) -> str:
    try:
        return content_digest(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}", got=error.strerror or "a damaged file") from None


def _schema(dataset: Dataset) -> Schema:
    return parse_schema(dataset.schema, f"The schema of the data set {dataset.name}")
