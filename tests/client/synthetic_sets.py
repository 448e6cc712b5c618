"""A real data set and one made from it, as values: no files."""

from __future__ import annotations

from pathlib import Path

from quorate_client.site.agreement import Dataset, Origin

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
    ),
)
