"""A site's data sets: registering one, splitting off its test part, and loading it for a study."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt

from quorate.errors import DataError
from quorate.identity import parse_name
from quorate_client.agreement import Dataset
from quorate_client.pictures import Images, read_images
from quorate_client.schema import ImageSchema, Schema, TabularSchema, parse_schema, schema_dict
from quorate_client.schema_fit import require_fit
from quorate_client.table import Table, read_table

LEAST_RECORDS = 2
"""Of the training and of the test part each."""

_SPLIT_CONTEXT = b"quorate/test-part/v1\x00"


def register(name: str, path: Path, schema: Mapping[str, Any], test_fraction: float) -> Dataset:
    """Check a file or folder against a schema, record by record, and describe it as a data set.

    Args:
        name: What studies will call it at this site.
        path: A .csv, .parquet or .npz file, or a folder with one folder of images for each class.
        schema: The parsed schema (``read_schema``).
        test_fraction: The share of records that is kept for evaluation, above 0 and below 1.

    Raises:
        InputError: the name is not valid. SchemaError: the schema is not. DataError: the data do not fit, named by
            row and column numbers, or too few records are left to train or to evaluate on.
    """
    parse_name(name, "data set")
    if not 0 < test_fraction < 1:
        raise DataError("The test part must be a share of the records", expected="above 0 and below 1")
    parsed = parse_schema(schema, f"The schema of the data set {name}")
    kind: Literal["tabular", "images"]
    match parsed:
        case TabularSchema():
            kind, records = "tabular", read_table(path, parsed).records
        case ImageSchema():
            kind, records = "images", read_images(path, parsed).records
        case _:
            assert_never(parsed)
    test = int(evaluation_part(name, records, test_fraction).sum())
    if min(test, records - test) < LEAST_RECORDS:
        raise DataError(
            f"{path} leaves too few records for training or for evaluation",
            expected=f"at least {LEAST_RECORDS} of each",
            got=f"{records - test} and {test} of {records}",
            action="Add records or change the test fraction",
        )
    return Dataset(name, kind, path.resolve(), schema_dict(parsed), test_fraction, records)


def evaluation_part(name: str, records: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Which records are for evaluation, [records]: the same at every start and on every machine.

    A record's lot is drawn by the data set's name and the record's number, so records that are added at the end leave
    the lots of the others as they are.
    """
    stream = hashlib.shake_256(_SPLIT_CONTEXT + name.encode()).digest(4 * records)
    return np.frombuffer(stream, dtype="<u4") < fraction * 2**32


def load_table(dataset: Dataset, wanted: TabularSchema) -> tuple[Table, Table]:
    """The training and the test part of a registered table, with the columns of a study's schema.

    Raises:
        SchemaError: the data set does not have what the study asks for. DataError: the file does not fit its schema
            any more, or holds another number of records.
    """
    offered = require_fit(_schema(dataset), wanted, dataset.name)
    used = {column.name for column in wanted.columns}
    unused = tuple(column.name for column in offered.columns if column.name not in used)
    file = offered.file.model_copy(update={"ignore": (*offered.file.ignore, *unused)})
    table = read_table(dataset.path, wanted.model_copy(update={"file": file}))
    test = _unchanged_evaluation_part(dataset, table.records)
    return table.part(~test), table.part(test)


def load_images(dataset: Dataset, wanted: ImageSchema) -> tuple[Images, Images]:
    """The training and the test part of registered images. Raises as ``load_table`` does."""
    offered = require_fit(_schema(dataset), wanted, dataset.name)
    images = read_images(dataset.path, offered)
    test = _unchanged_evaluation_part(dataset, images.records)
    return images.part(~test), images.part(test)


def _schema(dataset: Dataset) -> Schema:
    return parse_schema(dataset.schema, f"The schema of the data set {dataset.name}")


def _unchanged_evaluation_part(dataset: Dataset, records: int) -> npt.NDArray[np.bool_]:
    if records != dataset.records:
        raise DataError(
            f"The data set {dataset.name} has changed since it was registered",
            expected=f"{dataset.records} records",
            got=str(records),
            action="Register it again",
        )
    return evaluation_part(dataset.name, records, dataset.test_fraction)
