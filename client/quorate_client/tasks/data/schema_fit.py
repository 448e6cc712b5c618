"""Whether data of one schema has everything that a study with another schema reads."""

from __future__ import annotations

from typing import TypeVar

from quorate.errors import SchemaError
from quorate_client.tasks.data.schema import (
    REFUSE,
    CategoryColumn,
    Classified,
    Column,
    FlagColumn,
    ImageSchema,
    NumberColumn,
    Schema,
    TabularSchema,
)

Wanted = TypeVar("Wanted", bound=Schema)

_Difference = tuple[str, str, str]
"""What differs, what was expected, what came."""


def require_fit(offered: Schema, wanted: Wanted, dataset: str) -> Wanted:
    """Check that data of the schema ``offered`` has everything that a study with the schema ``wanted`` reads.

    Data may offer more: further columns, a narrower range, fewer categories, whole numbers for numbers. How the file is
    written does not matter. A rule for missing values is the study's, but data that has any must not meet "refuse".

    Returns:
        ``offered``, now known to be of the same kind.

    Raises:
        SchemaError: naming the first difference.
    """
    difference = _difference(offered, wanted)
    if isinstance(offered, type(wanted)) and difference is None:
        return offered
    what, expected, got = difference or ("another kind of data", wanted.kind, offered.kind)
    raise SchemaError(
        f"The data set {dataset} does not have what the study asks for: {what}",
        expected=expected,
        got=got,
        action="Register a data set with the study's schema, or decline the study",
    )


def _difference(offered: Schema, wanted: Schema) -> _Difference | None:
    match wanted, offered:
        case TabularSchema(), TabularSchema():
            return _table_difference(offered, wanted)
        case ImageSchema(), ImageSchema():
            for key in ("height", "width", "channels"):
                if getattr(offered, key) != getattr(wanted, key):
                    return f"another {key} of the images", str(getattr(wanted, key)), str(getattr(offered, key))
            return _class_difference(offered, wanted)
        case _:
            return None


def _table_difference(offered: TabularSchema, wanted: TabularSchema) -> _Difference | None:
    has = {column.name: column for column in offered.columns}
    for number, column in enumerate(wanted.columns, start=1):
        where = f"column {number} ({column.name})"
        if column.name not in has:
            return where, f"a column {column.name}", "no such column"
        if difference := _column_difference(has[column.name], column):
            what, expected, got = difference
            return f"{where}: {what}", expected, got
    if offered.label.name != wanted.label.name:
        return "another label column", wanted.label.name, offered.label.name
    return _class_difference(offered.label, wanted.label)


def _column_difference(offered: Column, wanted: Column) -> _Difference | None:
    match wanted, offered:
        case NumberColumn(), NumberColumn() if wanted.type == "number" or offered.type == "integer":
            (low, high), (least, most) = wanted.range, offered.range
            if not low <= least < most <= high:
                return "another range", f"within [{low:g}, {high:g}]", f"[{least:g}, {most:g}]"
        case CategoryColumn(), CategoryColumn():
            if extra := [category for category in offered.categories if category not in wanted.categories]:
                return "other categories", f"only {', '.join(wanted.categories)}", f"also {', '.join(extra)}"
        case FlagColumn(), FlagColumn():
            pass
        case _:
            return "another type", wanted.type, offered.type
    if wanted.missing == REFUSE and offered.missing != REFUSE:
        return "another rule for missing values", 'missing = "refuse"', f"missing = {offered.missing}"
    return None


def _class_difference(offered: Classified, wanted: Classified) -> _Difference | None:
    if offered.class_order != wanted.class_order:
        return "other classes", ", ".join(wanted.class_order), ", ".join(offered.class_order)
    return None
