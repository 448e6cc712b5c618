"""The section ``[privacy]`` of a study: which mechanisms are on, with what parameters. Absent means none."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from quorate.study.section import Frozen, Positive


class TrainingPrivacy(Frozen):
    """DP-SGD at each site (Abadi et al. 2016, algorithm 1): noise on the gradients, holds against everybody.

    Each site computes the noise from its own number of units, so that ``epsilon`` is what every site pays for the
    whole study; or the study gives the noise, and sites with fewer units pay more.
    """

    clip: Positive = Field(description="each record's gradient is clipped to this L2 norm")
    batch_size: int = Field(
        ge=1,
        description="expected records (or units, where a data set names units) of a step; each is in it with the same "
        "chance (Poisson sampling)",
    )
    steps: int = Field(ge=1, le=100_000, description="steps of each round; in place of the task's epochs")
    epsilon: Positive | None = Field(default=None, description="what the study may cost each site; gives the noise")
    noise_multiplier: Positive | None = Field(
        default=None, description="in place of epsilon: standard deviation of a step's noise over clip"
    )

    @model_validator(mode="after")
    def _noise_is_given_once(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give either epsilon or noise_multiplier")
        return self


class UpdatePrivacy(Frozen):
    """Noise on the parameters before sending: each site adds its share of integer noise to its clipped update.

    Under secure aggregation the sum carries ``noise_multiplier`` even if the tolerated sites are missing or collude;
    without it each site adds the whole. The unit is a site: its whole update of a round.
    """

    clip: Positive = Field(description="a site's update is clipped to this L2 norm")
    noise_multiplier: Positive = Field(description="standard deviation of the sum's noise over a site's influence")


class AveragePrivacy(Frozen):
    """Noise on the parameters after averaging, before the model is used: the same at each site.

    Drawn by the sites from a seed that only they have (without secure aggregation: by the server). It holds against
    those who see the model and not against the sites, which can subtract it. The unit is a site.
    """

    clip: Positive = Field(description="a site's update is clipped to this L2 norm")
    noise_multiplier: Positive = Field(description="standard deviation of the noise over a site's influence on the sum")


class EvaluationPrivacy(Frozen):
    """Noise on what is counted on held-out records, before it leaves a site. The unit is a held-out record.

    Under secure aggregation each site adds its share, so that the sum carries ``noise_multiplier`` even if the
    tolerated sites are missing or collude; without it each site adds the whole. The loss is not told then.
    """

    noise_multiplier: Positive = Field(description="standard deviation of the sum's noise over a record's influence")


Mechanism = TrainingPrivacy | UpdatePrivacy | AveragePrivacy | EvaluationPrivacy


class Privacy(Frozen):
    """Differential privacy of a study; each mechanism is on if its section is there."""

    delta: Annotated[float, Field(gt=0, lt=0.1)] = Field(
        description="chance that the promise of epsilon may fail; at most 1 / units^1.1 where policies do not differ"
    )
    spare_rounds: int = Field(
        default=1, ge=0, description="how many rounds more than planned the promises cover (failed attempts)"
    )
    training: TrainingPrivacy | None = None
    update: UpdatePrivacy | None = None
    average: AveragePrivacy | None = None
    evaluation: EvaluationPrivacy | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if not self.mechanisms:
            raise ValueError("name at least one of privacy.training, privacy.update, privacy.average")
        if self.update is not None and self.average is not None and self.update.clip != self.average.clip:
            raise ValueError("privacy.update.clip and privacy.average.clip bound the same update: give the same value")
        return self

    @property
    def mechanisms(self) -> dict[str, Mechanism]:
        """What is on, by its name."""
        each = {
            "training": self.training,
            "update": self.update,
            "average": self.average,
            "evaluation": self.evaluation,
        }
        return {name: mechanism for name, mechanism in each.items() if mechanism is not None}

    @property
    def update_clip(self) -> float | None:
        """The L2 norm that a site's whole update is clipped to; None where it is not."""
        bounding = self.update or self.average
        return bounding.clip if bounding else None

    @property
    def summary(self) -> str:
        """For people, in a line."""
        parts = []
        if self.training is not None:
            strength = (
                f"epsilon {self.training.epsilon:g}"
                if self.training.epsilon is not None
                else f"noise {self.training.noise_multiplier:g}"
            )
            parts.append(f"DP-SGD ({strength}, delta {self.delta:g}, per record or unit)")
        if self.update is not None:
            parts.append(f"noise before sending ({self.update.noise_multiplier:g}, per site)")
        if self.average is not None:
            parts.append(f"noise after averaging ({self.average.noise_multiplier:g}, per site)")
        if self.evaluation is not None:
            parts.append(f"noise on the evaluation ({self.evaluation.noise_multiplier:g}, per held-out record)")
        return ", ".join(parts)
