"""The section ``[robust]`` of a study: an average that a few sites cannot pull where they want it. Absent: the mean."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from quorate.study.section import Frozen, Positive


class Robust(Frozen):
    """What an attested machine makes of the updates in the place of their mean; it sees single ones to do so.

    Coordinate-wise median and trimmed mean: Yin, Chen, Ramchandran, Bartlett 2018 (https://arxiv.org/abs/1803.01498).
    """

    rule: Literal["mean", "median", "trimmed_mean"] = Field(
        default="mean",
        description="of each coordinate of the updates: their mean, their median, or the mean without "
        "the largest and smallest",
    )
    trim: Annotated[float, Field(gt=0, lt=0.5)] | None = Field(
        default=None, description="trimmed_mean: share of the sites left out at either end, at least one"
    )
    largest_norm: Positive | None = Field(
        default=None, description="an update with a larger L2 norm is shortened to it, whatever its site says"
    )

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if (self.rule == "trimmed_mean") != (self.trim is not None):
            raise ValueError('trim goes with rule = "trimmed_mean", and only with that')
        if self.rule == "mean" and self.largest_norm is None:
            raise ValueError("the mean is not robust: name another rule, or largest_norm")
        return self

    def left_out(self, sites: int) -> int:
        """Of so many, at either end."""
        return max(1, math.floor(self.trim * sites)) if self.trim is not None else 0

    @property
    def summary(self) -> str:
        """For people, in a line."""
        bound = "" if self.largest_norm is None else f", norms up to {self.largest_norm:g}"
        trimmed = "" if self.trim is None else f" ({self.trim:g} at either end)"
        return f"{self.rule.replace('_', ' ')}{trimmed}{bound}"
