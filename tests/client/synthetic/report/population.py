"""People who do not exist, and generators of synthetic sets of them: honest ones, and some that must be found out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quorate_client.tasks.data.schema import TabularSchema, parse_schema
from quorate_client.tasks.data.table import Table

Generator = Callable[[Table, bytes], Table]

SCHEMA = parse_schema(
    {
        "kind": "tabular",
        "columns": [
            {"name": "age", "type": "integer", "range": [18, 100]},
            {"name": "income", "type": "number", "range": [0, 500_000]},
            {"name": "premium", "type": "number", "range": [0, 50_000], "missing": "mean"},
            {"name": "pressure", "type": "number", "range": [40, 260]},
            {"name": "marker", "type": "number", "range": [-10, 10]},
            {"name": "visits", "type": "integer", "range": [0, 60]},
            {"name": "region", "type": "category", "categories": ["north", "east", "south", "west", "isles"]},
            {"name": "smoker", "type": "flag"},
        ],
        "label": {"name": "fraud", "classes": ["no", "yes"]},
    },
    "The schema of the tests",
)
assert isinstance(SCHEMA, TabularSchema)
TABULAR: TabularSchema = SCHEMA
NAMES = tuple(column.name for column in TABULAR.columns)


def people(count: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    age = np.clip(np.rint(rng.normal(52, 16, count)), 18, 100)
    income = np.clip(rng.lognormal(10.5, 0.6, count), 0, 500_000)
    smoker = (rng.random(count) < 0.25).astype(np.float64)
    marker = rng.normal(0, 1.5, count).clip(-10, 10)
    pressure = np.clip(90 + 0.7 * age + 8 * smoker + rng.normal(0, 12, count), 40, 260)
    premium = np.clip(income * 0.03 * np.exp(rng.normal(0, 0.4, count)), 0, 50_000)
    visits = rng.poisson(1 + 4 * smoker, count).clip(0, 60).astype(np.float64)
    region = rng.choice(5, count, p=[0.4, 0.3, 0.2, 0.095, 0.005]).astype(np.float64)
    odds = -2.2 + 1.1 * marker + 0.9 * smoker + 0.03 * (age - 50) - 0.5 * (region == 2)
    labels = (rng.random(count) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    premium[rng.random(count) < 0.05] = np.nan
    columns = (age, income, premium, pressure, marker, visits, region, smoker)
    return Table(dict(zip(NAMES, columns, strict=True)), labels)


def split(table: Table, held_out: int) -> tuple[Table, Table]:
    places = np.arange(table.records)
    return table.part(places >= held_out), table.part(places < held_out)


def copying(table: Table, seed: bytes) -> Table:
    """The records themselves, in another order."""
    return _rows(table, _rng(seed).permutation(table.records))


def honest(table: Table, seed: bytes) -> Table:
    """In each class a Gaussian of all columns, fitted to ranks: learns much about everybody, little about anybody."""
    rng = _rng(seed)
    labels = rng.choice(table.labels, table.records)
    out = {name: np.empty(table.records) for name in NAMES}
    for which in np.unique(labels):
        real, made = table.part(table.labels == which), labels == which
        scores = np.column_stack([_normal_scores(real.columns[name]) for name in NAMES])
        cover = np.corrcoef(scores.T) + 1e-6 * np.eye(len(NAMES)) if real.records > 20 else np.eye(len(NAMES))
        drawn = rng.multivariate_normal(np.zeros(len(NAMES)), cover, int(made.sum()), check_valid="ignore")
        for place, name in enumerate(NAMES):
            out[name][made] = _smooth(name, real.columns[name], drawn[:, place], rng)
    return Table(out, labels)


def independent(table: Table, seed: bytes) -> Table:
    """Each column by itself, the label too: nothing about anybody, and nothing worth learning."""
    rng = _rng(seed)
    columns = {name: _smooth(name, table.columns[name], rng.normal(size=table.records), rng) for name in NAMES}
    return Table(columns, rng.choice(table.labels, table.records))


def leaking(column: str, base: Generator = honest) -> Generator:
    """Honest but for one column, whose values are those of the records, exactly."""

    def made(table: Table, seed: bytes) -> Table:
        drawn = base(table, seed)
        values = _rng(seed + b"leak").permutation(table.columns[column])
        return Table({**drawn.columns, column: values}, drawn.labels)

    return made


def telling(column: str) -> Generator:
    """Records with everything about a person blurred but one column, which stands beside it as it is."""

    def made(table: Table, seed: bytes) -> Table:
        rng = _rng(seed)
        columns = {
            name: values
            if name == column or name in ("region", "smoker")
            else _within(name, values + 0.05 * np.nanstd(values) * rng.normal(size=table.records))
            for name, values in table.columns.items()
        }
        return Table(columns, table.labels)

    return made


def loose(base: Generator = honest) -> Generator:
    """Honest, and then the labels fell off and were put on again anyhow."""

    def made(table: Table, seed: bytes) -> Table:
        drawn = base(table, seed)
        return Table(drawn.columns, _rng(seed + b"loose").permutation(drawn.labels))

    return made


def _rng(seed: bytes) -> np.random.Generator:
    return np.random.default_rng(list(seed))


def _rows(table: Table, order: np.ndarray) -> Table:
    return Table({name: values[order] for name, values in table.columns.items()}, table.labels[order])


def _normal_scores(values: np.ndarray) -> np.ndarray:
    from scipy.stats import norm, rankdata

    filled = np.where(np.isnan(values), np.nanmedian(values), values)
    jitter = np.random.default_rng(0).random(len(values)) * 1e-9 * (np.ptp(filled) + 1)
    return np.asarray(norm.ppf(rankdata(filled + jitter) / (len(values) + 1)))


def _smooth(name: str, real: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values for normal scores, by the twentieths of the real ones: none of them is a real one."""
    from scipy.stats import norm

    place = norm.cdf(scores)
    present = real[~np.isnan(real)]
    if name in ("region", "smoker"):
        return np.quantile(present, place, method="inverted_cdf")
    made = _within(name, np.quantile(present, np.linspace(0.0, 1, 21))[np.minimum((place * 20).astype(int), 19)])
    upper = np.quantile(present, np.linspace(0.0, 1, 21))[np.minimum((place * 20).astype(int) + 1, 20)]
    made = _within(name, made + (upper - made) * rng.random(len(place)))
    made[rng.random(len(place)) < np.isnan(real).mean()] = np.nan
    return made


def _within(name: str, values: np.ndarray) -> np.ndarray:
    column = next(column for column in TABULAR.columns if column.name == name)
    clipped = np.clip(values, *column.range)  # type: ignore[union-attr]
    return np.rint(clipped) if column.type == "integer" else clipped
