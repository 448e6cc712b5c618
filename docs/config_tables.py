"""The keys of a TOML file as Markdown tables, read from the pydantic model that checks the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

# What these patterns mean is easier to read in words.
PATTERNS = {
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$": "a name (up to 63 lower-case letters, digits, inner hyphens)",
    r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$": "`MODULE:ATTRIBUTE`",
    r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):[0-9]{1,5}$": "`HOST:PORT`",
    r"^((\[[0-9a-fA-F:]+\]|[^\s:/]+):[0-9]{1,5})?$": "`HOST:PORT` or empty",
    r"^http://([^\s/@]+@)?[^\s/@:]+:[0-9]{1,5}/?$": "`http://HOST:PORT`",
    r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$": "`HH:MM-HH:MM`",
    r"^\S(.*\S)?$": "text",
    "^[0-9a-f]{64}$": "64 hexadecimal digits",
    "^[0-9a-f]{96}$": "96 hexadecimal digits",
    "^[0-9a-f]{128}$": "128 hexadecimal digits",
    "^sha256:[0-9a-f]{64}$": "`sha256:` and 64 hexadecimal digits",
}
NOUNS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


class UndocumentedKeyError(Exception):
    """A key has no description in the code."""


@dataclass(frozen=True)
class _Section:
    """A TOML table: its heading, whether it may be left out, and its JSON schema."""

    heading: str
    optional: bool
    schema: Schema


def tables(model: type[BaseModel], *, level: int = 2, without: tuple[str, ...] = ()) -> str:
    """A Markdown table for the top of the file and one for each of its sections.

    Args:
        model: Checks the file.
        level: Of the headings.
        without: Keys of the model that are not in the file.

    Raises:
        UndocumentedKeyError: naming the key.
    """
    root = model.model_json_schema()
    definitions = root.get("$defs", {})
    root["properties"] = {key: value for key, value in root["properties"].items() if key not in without}
    parts = [_rows(root, definitions)]
    for section in _sections(root, definitions):
        about = " ".join(section.schema.get("description", "").partition("\n\n")[0].split()).replace("``", "`")
        about += " May be left out." if section.optional else ""
        parts += [f"{'#' * level} {section.heading}\n", about.strip() + "\n", _rows(section.schema, definitions)]
    return "\n".join(part for part in parts if part.strip())


def _rows(schema: Schema, definitions: Schema) -> str:
    rows = []
    for key, value in schema["properties"].items():
        if list(_tables_in(key, value, definitions)):
            continue
        if "description" not in value:
            raise UndocumentedKeyError(f"{schema.get('title')}.{key} has no description in the code")
        default = "required" if key in schema.get("required", ()) else _default(value.get("default"))
        rows.append(f"| `{key}` | {_cell(_kind(value, definitions))} | {default} | {_cell(value['description'])} |\n")
    return "".join(["| Key | Value | Default | Meaning |\n| --- | --- | --- | --- |\n", *rows]) if rows else ""


def _sections(schema: Schema, definitions: Schema, within: str = "") -> Iterator[_Section]:
    for key, value in schema["properties"].items():
        for heading, table in _tables_in(within + key, value, definitions):
            yield _Section(heading, key not in schema.get("required", ()), table)
            yield from _sections(table, definitions, f"{within}{key}.")


def _tables_in(path: str, value: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """The TOML tables that a key can hold: none, one, several in an array of tagged tables, or one for each name."""
    for option in _options(value, definitions):
        if "properties" in option:
            yield f"`[{path}]`", option
        named = option.get("additionalProperties")
        for item in _options(named, definitions) if isinstance(named, dict) else ():
            if "properties" in item:
                yield f"`[{path}.NAME]`", item
        for item in _options(option.get("items", {}), definitions):
            if "properties" in item:
                tag = _kind(item["properties"].get("type", {}), definitions)
                yield f"`[[{path}]]`" + (f" with `type` {tag}" if tag else ""), item


def _options(value: Schema, definitions: Schema) -> list[Schema]:
    """What a value may be, references followed."""
    choices = value.get("anyOf") or value.get("oneOf") or value.get("allOf") or [value]
    return [
        definitions[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
        for choice in choices
        if choice.get("type") != "null"
    ]


def _kind(value: Schema, definitions: Schema) -> str:
    return " or ".join(_one_kind(option, definitions) for option in _options(value, definitions) if option)


def _one_kind(value: Schema, definitions: Schema) -> str:
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    match value.get("type"):
        case "array" if "prefixItems" in value:
            return "[" + ", ".join(_kind(item, definitions) for item in value["prefixItems"]) + "]"
        case "array":
            return f"list of {_kind(value['items'], definitions)}" + _length(
                value, "minItems", "maxItems", "; {} entries"
            )
        case "object":
            return "table"
        case "string" if value.get("format") == "date":
            return "date, `YYYY-MM-DD`"
        case "string":
            noun = PATTERNS[value["pattern"]] if "pattern" in value else "text"
            return noun + _length(value, "minLength", "maxLength", ", {} characters")
        case kind:
            bounds = ", ".join(f"{sign} {value[name]}" for name, sign in BOUNDS if name in value)
            return NOUNS[str(kind)] + (f" {bounds}" if bounds else "")


def _length(value: Schema, least: str, most: str, words: str) -> str:
    """A bound in words; "at least one" goes without saying."""
    low, high = value.get(least, 0), value.get(most)
    if high is None:
        return words.format(f"at least {low}") if low > 1 else ""
    return words.format(f"{low} to {high}" if low > 1 else f"at most {high}")


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        value = sorted(value, key=str)
    return "empty table" if value == {} else f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
