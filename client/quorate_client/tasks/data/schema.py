"""What a data set must look like: columns or images, their types and public ranges, and the classes to tell apart.

A data scientist writes a schema once; a study carries it in its task's parameters, and a site registers its data set
against it. Ranges and categories are public: they are agreed on without looking at anybody's records, so that whatever
is scaled by them gives nothing away. docs/reference/schema.md says how to write one. Whether data of one schema may
serve a study with another is in ``schema_fit.py``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from quorate.errors import SchemaError
from quorate.study.section import Frozen
from quorate.tally import MAX_CLASSES

REFUSE: Literal["refuse"] = "refuse"
MEAN: Literal["mean"] = "mean"

_MAX_COLUMNS = 4096
_MAX_CATEGORIES = 1000


def _word(value: object) -> object:
    """A category may be written as a number in TOML; in a file it is always compared as text without outer blanks."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value != value.strip():
        raise ValueError("must not begin or end with a blank")
    return value


def _number_rule(value: object) -> object:
    if value in (REFUSE, MEAN) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError('expected "refuse", "mean" or a number within range')


def _flag_rule(value: object) -> object:
    if value == REFUSE or isinstance(value, bool):
        return value
    raise ValueError('expected "refuse", true or false')


Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
Category = Annotated[str, BeforeValidator(_word), Field(min_length=1, max_length=200)]
Classes = Annotated[tuple[Category, ...], Field(max_length=MAX_CLASSES)]


class NumberColumn(Frozen):
    """A measured or counted quantity within a public range."""

    name: ColumnName = Field(description="as in the first line of the file")
    type: Literal["number", "integer"] = Field(description="what a cell holds")
    range: tuple[Finite, Finite] = Field(description="lowest and highest value that a record may have")
    missing: Annotated[Literal["refuse", "mean"] | Finite, BeforeValidator(_number_rule)] = Field(
        default=REFUSE, description="what stands in for an empty cell; refuse: nothing may"
    )

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        low, high = self.range
        if not low < high:
            raise ValueError("range must be [lowest, highest] with the lowest below the highest")
        if isinstance(self.missing, float) and not low <= self.missing <= high:
            raise ValueError("missing is a number outside range")
        return self


class CategoryColumn(Frozen):
    """One of a public list of words."""

    name: ColumnName = Field(description="as in the first line of the file")
    type: Literal["category"] = Field(description="what a cell holds")
    categories: tuple[Category, ...] = Field(
        max_length=_MAX_CATEGORIES, description="all words that a record may have, at least two"
    )
    missing: Category = Field(default=REFUSE, description="the category of an empty cell; refuse: it has none")

    @model_validator(mode="after")
    def _categories_are_a_list(self) -> Self:
        _choice(self.categories, "categories")
        if REFUSE in self.categories:
            raise ValueError('categories must not hold the word "refuse", which has a meaning in missing')
        if self.missing != REFUSE and self.missing not in self.categories:
            raise ValueError('missing must be "refuse" or one of categories')
        return self


class FlagColumn(Frozen):
    """Yes or no: 1 and 0, or true and false."""

    name: ColumnName = Field(description="as in the first line of the file")
    type: Literal["flag"] = Field(description="what a cell holds")
    missing: Annotated[Literal["refuse"] | bool, BeforeValidator(_flag_rule)] = Field(
        default=REFUSE, description="what stands in for an empty cell; refuse: nothing may"
    )


Column = Annotated[NumberColumn | CategoryColumn | FlagColumn, Field(discriminator="type")]


class Classified(Frozen):
    """What tells the classes apart. With two classes one is the positive one (by default the second)."""

    classes: Classes = Field(description="what a record can be, at least two")
    positive: Category | None = Field(
        default=None, description="of two classes the one that is looked for; none: the second"
    )

    @model_validator(mode="after")
    def _classes_are_a_list(self) -> Self:
        _choice(self.classes, "classes")
        if self.positive is not None and (len(self.classes) != 2 or self.positive not in self.classes):
            raise ValueError("positive is for two classes and must be one of them")
        return self

    @property
    def class_order(self) -> tuple[str, ...]:
        """The classes as they are numbered from 0 on in models and metrics: of two, the positive one is number 1."""
        if self.positive == self.classes[0]:
            return (self.classes[1], self.classes[0])
        return self.classes


class Label(Classified):
    """The column that holds the class. A record without it is refused."""

    name: ColumnName = Field(description="as in the first line of the file")


class TableFile(Frozen):
    """How the site's own file is written. No part of what a study asks for."""

    delimiter: Literal[",", ";", "\t", "|"] = Field(
        default=",", description="what stands between the cells of a CSV file"
    )
    ignore: tuple[ColumnName, ...] = Field(default=(), description="columns of the file that are never read")
    unit: ColumnName | None = Field(
        default=None,
        description="the column that says whose record it is, such as a patient's number: what privacy is promised to; "
        "none: each record is by itself",
    )


class TabularSchema(Frozen):
    """Records in the rows of a CSV or Parquet file."""

    kind: Literal["tabular"] = Field(description="what this schema describes")
    columns: tuple[Column, ...] = Field(max_length=_MAX_COLUMNS, description="in the order of the model's features")
    label: Label = Field(description="the class of a record")
    file: TableFile = TableFile()

    @model_validator(mode="after")
    def _columns_have_names(self) -> Self:
        if not self.columns:
            raise ValueError("columns must hold at least one column")
        unit = () if self.file.unit is None else (self.file.unit,)
        names = (*(column.name for column in self.columns), self.label.name, *self.file.ignore, *unit)
        _distinct(names, "column names")
        return self


class ImageFile(Frozen):
    """The arrays of an .npz file. A folder needs none: it holds one folder of images for each class."""

    images: str = Field(default="images", min_length=1, description="name of the array of images")
    labels: str = Field(default="labels", min_length=1, description="name of the array of class numbers")
    unit: str | None = Field(
        default=None,
        min_length=1,
        description="name of the array that says whose image it is: what privacy is promised to; none: each image is "
        "by itself",
    )


class ImageSchema(Classified):
    """Images of one size, 8 bits a channel."""

    kind: Literal["images"] = Field(description="what this schema describes")
    height: int = Field(ge=1, le=4096, description="pixels")
    width: int = Field(ge=1, le=4096, description="pixels")
    channels: Literal[1, 3] = Field(description="1: grey, 3: colour")
    file: ImageFile = ImageFile()


Schema = TabularSchema | ImageSchema

_SCHEMA: TypeAdapter[Schema] = TypeAdapter(Annotated[Schema, Field(discriminator="kind")])


def parse_schema(content: object, subject: str) -> Schema:
    """Check a schema that was read from a file, from a study or from the site's own records.

    Args:
        content: The parsed TOML or JSON.
        subject: What the schema is, to begin the message with, such as "The schema file heart.toml".

    Raises:
        SchemaError: naming each wrong key and what was expected.
    """
    try:
        return _SCHEMA.validate_python(content)
    except ValidationError as error:
        problems = [f"{_place(problem['loc'], content)}: {_reason(problem)}" for problem in error.errors()]
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise SchemaError(
            f"{subject} has {len(problems)} problem{'s' if len(problems) > 1 else ''}",
            got=shown,
            action="Correct these keys; docs/reference/schema.md lists all of them",
        ) from error


def read_schema(path: Path) -> dict[str, Any]:
    """A schema file (TOML), checked, with all defaults filled in: what a data set is registered with.

    Raises:
        SchemaError: naming the file and each wrong key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SchemaError(f"Cannot read the schema file {path}", got=error.strerror or "") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"The schema file {path} is not TOML", got=str(error)) from error
    return schema_dict(parse_schema(content, f"The schema file {path}"))


def schema_dict(schema: Schema) -> dict[str, Any]:
    """A schema as plain JSON values, all defaults filled in. ``parse_schema`` reads it back."""
    return schema.model_dump(mode="json")


def named_unit(schema: Mapping[str, Any], unit: str | None) -> dict[str, Any]:
    """A site's schema (``schema_dict``) in which ``unit`` says whose each record is, if it is given."""
    return dict(schema) if unit is None else {**schema, "file": {**schema["file"], "unit": unit}}


def _choice(words: tuple[str, ...], what: str) -> None:
    if len(words) < 2:
        raise ValueError(f"{what} must hold at least two")
    _distinct(words, what)


def _distinct(names: tuple[str, ...], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} must be distinct; more than once: {', '.join(twice)}")


def _place(location: tuple[int | str, ...], content: object) -> str:
    """Where a problem is, in the words of the file. The tags of pydantic's unions are left out."""
    match location[1:]:
        case ("columns", int(index), *rest):
            columns = content.get("columns") if isinstance(content, Mapping) else None
            column = columns[index] if isinstance(columns, list | tuple) else None
            name = column.get("name") if isinstance(column, Mapping) else None
            shown = f"column {index + 1}" + (f" ({name})" if isinstance(name, str) else "")
            return ".".join([shown, *(str(part) for part in rest[1:])])
        case rest:
            return ".".join(str(part) for part in rest) or "schema"


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    return str(problem["msg"]).removeprefix("Value error, ")
