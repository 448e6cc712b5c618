"""The section ``[synthetic]`` of a study: what a made data set must be. Absent leaves it to the sites."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quorate.study.section import Frozen, Positive, given

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Synthetic(Frozen):
    """The least that a synthetic data set must be, at every site. A site's policy may ask for more, never for less."""

    largest_epsilon: Positive | None = Field(
        default=None, description="most epsilon for which a set was made; one made without privacy is refused then"
    )
    largest_risk: Share | None = Field(
        default=None,
        description="most that the set's report found somebody to gain on the real records: by membership, an "
        "attribute, singling out or linking",
    )
    largest_utility_loss: Share | None = Field(
        default=None, description="most area under the curve that a model loses by training on the set"
    )

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by key."""
        return given(self, type(self).model_fields)

    @property
    def summary(self) -> str:
        """For people, in a line."""
        return ", ".join(f"{name} = {limit:g}" for name, limit in self.limits.items()) or "no limit of the study's"
