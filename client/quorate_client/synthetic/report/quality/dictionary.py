"""The data dictionary: what each column of the set is, in the schema's words and ranges."""

from __future__ import annotations

from typing import assert_never

from quorate.study.section import Frozen
from quorate_client.tasks.data.schema import REFUSE, CategoryColumn, Column, FlagColumn, NumberColumn, TabularSchema


class Entry(Frozen):
    """One column. ``values``: words or range that the schema allows; ``missing``: what an empty cell means."""

    name: str
    type: str
    values: str
    missing: str


def entries(schema: TabularSchema) -> tuple[Entry, ...]:
    label = Entry(
        name=schema.label.name, type="label", values=", ".join(schema.label.class_order), missing="not allowed"
    )
    return (*(_entry(column) for column in schema.columns), label)


def _entry(column: Column) -> Entry:
    missing = "not allowed" if column.missing == REFUSE else f"stands for {_word(column.missing)}"
    return Entry(name=column.name, type=column.type, values=_values(column), missing=missing)


def _values(column: Column) -> str:
    match column:
        case NumberColumn():
            return f"{column.range[0]:g} to {column.range[1]:g}"
        case CategoryColumn():
            return ", ".join(column.categories)
        case FlagColumn():
            return "no, yes"
        case _:
            assert_never(column)


def _word(missing: object) -> str:
    if missing == "mean":
        return "the mean"
    return {True: "yes", False: "no"}[missing] if isinstance(missing, bool) else str(missing)
