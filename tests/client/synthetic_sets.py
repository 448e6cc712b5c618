"""A real data set and one made from it: as values, and with files that nobody generated."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from quorate_client.site.agreement import Dataset, Origin
from quorate_client.tasks.data.record_index import content_digest

REAL = Dataset(
    "visits",
    "tabular",
    Path("/data/visits.csv"),
    {"kind": "tabular"},
    0.25,
    120,
    content="c0",
    index=Path("/site/records/ab"),
)
SYNTHETIC = Dataset(
    "visits-made",
    "tabular",
    Path("/site/synthetic/visits-made/records.csv"),
    {"kind": "tabular"},
    0.25,
    200,
    content="c2",
    origin=Origin(
        source=REAL,
        generator="quorate.marginals/1",
        epsilon=3.0,
        delta=1e-5,
        seed_commitment="5e" * 32,
        made_unix_s=1_700_000_000.0,
        risks={"membership": 0.01, "attribute": 0.02, "singling_out": 0.0, "linkability": 0.03},
        utility_loss=0.04,
        report="ee" * 32,
        lineage="11" * 32,
    ),
)


def made_from(source: Dataset, folder: Path, table: str, **origin: Any) -> Dataset:
    """A data set as making one leaves it: the file, and the report beside it, which is not read but compared.

    Args:
        table: The file, CSV, with the columns of the source's schema.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, report = folder / "records.csv", folder / "report.json"
    path.write_text(table)
    report.write_text("{}")
    assert SYNTHETIC.origin is not None
    found = {"source": source, "report": hashlib.sha256(b"{}").hexdigest()} | origin
    return replace(
        SYNTHETIC,
        name=f"{source.name}-made",
        path=path,
        schema=source.schema,
        test_fraction=source.test_fraction,
        records=table.count("\n"),
        content=content_digest(path),
        origin=replace(SYNTHETIC.origin, **found),
    )
