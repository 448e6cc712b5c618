"""Released models on records that no model was trained on, as no party of a real consortium could see them together."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quorate_client.approval.datasets import Datasets
from quorate_client.site.agreement import Dataset
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks.data.datasets import unchanged_index
from quorate_client.tasks.data.schema import TabularSchema, parse_schema, read_schema
from quorate_client.tasks.data.table import Table
from quorate_client.tasks.models.tabular import predict


def registered(site: Path, dataset: str) -> Dataset:
    """A data set as a site's folder has it."""
    with site_state(SiteFolder(site).database) as state:
        return Datasets(state, time.time).get(dataset)


def held_out(site: Path, dataset: str) -> np.ndarray:
    """Which of a site's records are for evaluation, [records]."""
    return unchanged_index(registered(site, dataset)).held_out


def table_schema(path: Path) -> TabularSchema:
    schema = parse_schema(read_schema(path), str(path))
    if not isinstance(schema, TabularSchema):
        raise TypeError(f"{path} is no schema of a table")
    return schema


def scores(model: Path, table: Table) -> np.ndarray:
    """The model's probability of the class that is looked for, [records]: what a recipient of the file would do."""
    with np.load(model, allow_pickle=False) as arrays:
        metadata = json.loads(arrays["__metadata__"].tobytes())
        # Of two classes the one that is looked for is number 1.
        return predict(arrays, metadata, table)[:, 1]


def joined(tables: Sequence[Table]) -> Table:
    """The records of all sites in one table."""
    first, *others = tables
    for other in others:
        first = first.followed_by(other)
    return first
