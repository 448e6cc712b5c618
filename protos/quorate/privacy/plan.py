"""From what a study promises to what a site does in a round: how often a record is in a step, and how much noise."""

from __future__ import annotations

from dataclasses import dataclass

from quorate.errors import PrivacyUnsupportedError
from quorate.privacy.events import Event
from quorate.study.privacy_section import Privacy, TrainingPrivacy

MAX_SAMPLED = 0.5
"""Largest chance of a record to be in a step: above it sampling hides little, and the noise is better spent at 1."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """DP-SGD at one site.

    Args:
        sampling_rate: The chance of a record to be in a step.
        noise_multiplier: Standard deviation of a step's noise over the clipping norm.
        steps: Of a round.
        rounds: That the promise covers, spare ones included.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    rounds: int

    @property
    def round_event(self) -> Event:
        """What one round releases."""
        return Event(self.noise_multiplier, self.sampling_rate, self.steps)

    @property
    def study_event(self) -> Event:
        """What all rounds release."""
        return Event(self.noise_multiplier, self.sampling_rate, self.steps * self.rounds)


def training_plan(privacy: Privacy, training: TrainingPrivacy, records: int, rounds: int) -> TrainingPlan:
    """What ``[privacy.training]`` means for a site with so many records.

    Args:
        rounds: Those of the study; the spare ones come on top.

    Raises:
        PrivacyUnsupportedError: too few records. PrivacyRefusedError: no noise reaches the study's epsilon.
    """
    rate = training.batch_size / records if records else 1.0
    if rate > MAX_SAMPLED:
        raise PrivacyUnsupportedError(
            "This site has too few records for the steps that the study asks for",
            expected=f"at least {training.batch_size / MAX_SAMPLED:.0f} training records for "
            f"privacy.training.batch_size = {training.batch_size}",
            got=f"{records}",
            action="Have the operator publish the study with a smaller batch_size, or leave this site out",
        )
    covered = rounds + privacy.spare_rounds
    noise = training.noise_multiplier
    if noise is None:
        from quorate.privacy.accounting import noise_multiplier_for  # imports numpy

        noise = noise_multiplier_for(training.epsilon or 0.0, privacy.delta, rate, training.steps * covered)
    return TrainingPlan(rate, noise, training.steps, covered)


def site_event(privacy: Privacy) -> Event | None:
    """What a round releases of a site as a whole, where noise on parameters is to hide it.

    Counted is what holds against most: noise before sending, where there is some.
    """
    mechanism = privacy.update or privacy.average
    return Event(mechanism.noise_multiplier) if mechanism else None
