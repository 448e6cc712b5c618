"""What a column was found to be, in words that repeat no record."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal[
    "name",
    "address",
    "insurance number",
    "telephone number",
    "e-mail",
    "free text",
    "record number",
    "date of birth",
    "near-unique",
]


class Sign(NamedTuple):
    kind: Kind
    reason: str
