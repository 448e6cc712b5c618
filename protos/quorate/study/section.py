"""What all that is agreed in a study is made of: values that do not change, and no key that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def given(section: BaseModel, keys: Iterable[str]) -> dict[str, Any]:
    """Those of a section's keys that have a value."""
    each = {key: getattr(section, key) for key in keys}
    return {key: value for key, value in each.items() if value is not None}
