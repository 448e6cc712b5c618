"""Which columns of a data set may say who somebody is, and the three ways to answer for each.

A synthetic record repeats whatever its columns can hold: names and telephone numbers show people even where no record
is repeated. So such columns are found before anything is made: by their name, by what their values look like, and by
telling nearly every record from every other. The rules are beside this file. They miss what looks harmless, and are
no replacement for a look at the schema.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np
import numpy.typing as npt

from quorate.errors import DataError
from quorate_client.synthetic.identifying.column_names import named_like_a_number, said_by_name
from quorate_client.synthetic.identifying.digits import said_by_digits
from quorate_client.synthetic.identifying.distinctness import numbers_tell_apart, words_tell_apart
from quorate_client.synthetic.identifying.sign import Kind, Sign
from quorate_client.synthetic.identifying.words import said_by_words
from quorate_client.tasks.data.columns import Vector
from quorate_client.tasks.data.schema import CategoryColumn, Column, FlagColumn, NumberColumn, TabularSchema
from quorate_client.tasks.data.table import Table

_FEW_NUMBERS, _FEW_WORDS = 100, 2
"""A column with so little to say tells nobody's name, whatever it is called."""
_OWN_NUMBER = 0.5
"""Of the records that must have a number of their own for a column called ``id`` to be one."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """
    Args:
        reason: In words that repeat no record.
    """

    column: str
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Mitigation:
    """What a site's administrator answers for columns.

    Args:
        keep: Declared to identify nobody.
        drop: Left out.
        generalise: Columns of numbers, each rounded to multiples of its step.
    """

    keep: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()
    generalise: Mapping[str, float] = field(default_factory=dict)


def suspicions(schema: TabularSchema, table: Table) -> list[Suspicion]:
    """At most one for each column, in the order of the schema; the label last."""
    return list(_found(schema, table, by_name=True))


def require_none(schema: TabularSchema, table: Table, mitigation: Mitigation) -> None:
    """Every suspicion must be answered for, and a generalised column must have stopped to tell who somebody is.

    Raises:
        DataError: naming each column, why, and what to do. Or the mitigation does not fit the schema.
    """
    coarse_schema, coarse = mitigated(schema, table, mitigation)
    answered = mitigation.keep | mitigation.drop | mitigation.generalise.keys()
    open_ones = [each for each in suspicions(schema, table) if each.column not in answered]
    still = [
        replace(each, reason=f"generalised by {mitigation.generalise[each.column]:g}, but still {each.reason}")
        for each in _found(coarse_schema, coarse, by_name=False)
        if each.column in mitigation.generalise
    ]
    if found := open_ones + still:
        count = "1 column" if len(found) == 1 else f"{len(found)} columns"
        raise DataError(
            f"{count} may say who somebody is",
            got="; ".join(f"{each.column} ({each.kind}: {each.reason})" for each in found),
            action="For each: leave it out with --drop COLUMN, round its numbers with --generalise COLUMN=STEP, or, if "
            "it identifies nobody, say so with --keep COLUMN",
        )


def mitigated(schema: TabularSchema, table: Table, mitigation: Mitigation) -> tuple[TabularSchema, Table]:
    """Without the dropped columns, and with rounded numbers, which stay within the schema's ranges.

    Raises:
        DataError: a column is not there, answered for twice, or cannot be left out or rounded as asked.
    """
    _require_fit(schema, mitigation)
    columns = tuple(column for column in schema.columns if column.name not in mitigation.drop)
    values = {
        column.name: _rounded(column, table.columns[column.name], mitigation.generalise.get(column.name))
        for column in columns
    }
    return schema.model_copy(update={"columns": columns}), replace(table, columns=values)


def _found(schema: TabularSchema, table: Table, *, by_name: bool) -> Iterator[Suspicion]:
    label = CategoryColumn(name=schema.label.name, type="category", categories=schema.label.class_order)
    firsts = None if table.units is None else np.sort(np.unique(table.units, return_index=True)[1])
    for column in (*schema.columns, label):
        values = table.labels.astype(np.float64) if column is label else table.columns[column.name]
        sign = (_claimed(column, values) if by_name else None) or _seen(column, values)
        if sign is None and firsts is not None:
            sign = _tells_apart(column, _present(values[firsts]))
        if sign is not None:
            yield Suspicion(column.name, sign.kind, sign.reason)


def _claimed(column: Column, values: Vector) -> Sign | None:
    match column:
        case FlagColumn():
            return None
        case CategoryColumn():
            if len(column.categories) <= _FEW_WORDS:
                return None
        case NumberColumn():
            if column.range[1] - column.range[0] <= _FEW_NUMBERS:
                return None
        case _:
            assert_never(column)
    sign = said_by_name(column.name)
    if sign is not None and sign.kind == "free text" and column.type != "category":
        return None
    if sign is None and named_like_a_number(column.name):
        present = _present(values)
        if (present == np.rint(present)).all() and len(np.unique(present)) > _OWN_NUMBER * len(present):
            return Sign("record number", "its name says so, and most records have one of their own")
    return sign


def _seen(column: Column, values: Vector) -> Sign | None:
    present = _present(values)
    match column:
        case FlagColumn():
            return None
        case CategoryColumn():
            sign = said_by_words(column.categories, _places(present))
        case NumberColumn():
            sign = said_by_digits(present) if _whole(present) else None
        case _:
            assert_never(column)
    return sign or _tells_apart(column, present)


def _tells_apart(column: Column, present: Vector) -> Sign | None:
    match column:
        case FlagColumn():
            return None
        case CategoryColumn():
            return words_tell_apart(_places(present), len(column.categories))
        case NumberColumn():
            return numbers_tell_apart(present) if _whole(present) else None
        case _:
            assert_never(column)


def _present(values: Vector) -> Vector:
    return values[~np.isnan(values)]


def _whole(present: Vector) -> bool:
    return len(present) > 0 and bool((present == np.rint(present)).all())


def _places(present: Vector) -> npt.NDArray[np.int64]:
    return present.astype(np.int64)


def _require_fit(schema: TabularSchema, mitigation: Mitigation) -> None:
    columns = {column.name: column for column in schema.columns}
    answers = [*mitigation.keep, *mitigation.drop, *mitigation.generalise]
    if twice := sorted({name for name in answers if answers.count(name) > 1}):
        raise DataError(f"Columns are to be treated in two ways: {', '.join(twice)}", expected="one answer for each")
    if unknown := sorted({*answers} - {*columns, schema.label.name}):
        raise DataError(
            f"The data set has no column {', '.join(unknown)}",
            expected=f"some of {', '.join(columns)}",
            action="Take the names from its schema",
        )
    if schema.label.name in {*mitigation.drop, *mitigation.generalise}:
        raise DataError(
            f"{schema.label.name} is the label, without which records are of no use", expected="a column, or --keep"
        )
    if mitigation.drop >= columns.keys():
        raise DataError("All columns are to be left out", expected="at least one that stays")
    for name, step in mitigation.generalise.items():
        _require_step(columns[name], step)


def _require_step(column: Column, step: float) -> None:
    if not isinstance(column, NumberColumn):
        raise DataError(
            f"{column.name} holds no numbers, so it cannot be rounded",
            action="Leave it out (--drop) or keep it (--keep)",
        )
    if not (math.isfinite(step) and step > 0) or (column.type == "integer" and step != int(step)):
        expected = "a whole number above 0" if column.type == "integer" else "a number above 0"
        raise DataError(f"{column.name} cannot be rounded to this step", expected=expected, got=f"{step:g}")
    low, high = column.range
    if not math.isfinite(max(abs(low), abs(high)) / step):
        raise DataError(f"{column.name} cannot be rounded to this step", expected="a larger one", got=f"{step:g}")
    first, last = _multiples(column, step)
    if first > last:
        raise DataError(
            f"No multiple of {step:g} lies in the range of {column.name}",
            expected=f"a step with one in {low:g} to {high:g}",
        )


def _multiples(column: NumberColumn, step: float) -> tuple[int, int]:
    """The first and the last multiple of the step within the column's range."""
    low, high = column.range
    return math.ceil(low / step), math.floor(high / step)


def _rounded(column: Column, values: Vector, step: float | None) -> Vector:
    if step is None or not isinstance(column, NumberColumn):
        return values
    distinct, places = np.unique(np.clip(np.rint(values / step), *_multiples(column, step)), return_inverse=True)
    return np.array([float(f"{multiple * step:.15g}") for multiple in distinct])[places]  # 3 x 0.1 is 0.3
