"""What a study promises about the people in the data: in plain words, and in exact terms.

The sentences are promises, so they are made from the study's own terms and kept in one place: the site's administrator
reads them before approving, and the report repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from quorate.privacy.events import Event
from quorate.privacy.terms import AveragePrivacy, Privacy, TrainingPrivacy, UpdatePrivacy
from quorate.study import Study


@dataclass(frozen=True, slots=True)
class Statement:
    """``plain`` is for the people in the data, ``exact`` for experts; one sentence or more in each entry."""

    plain: tuple[str, ...]
    exact: tuple[str, ...]


NO_PRIVACY = Statement(
    plain=(
        "Nothing was done to keep the trained model from remembering single records. Whoever gets the model may be "
        "able to find out whether a certain person's record was among those that it was trained on.",
    ),
    exact=("No differential privacy: no epsilon bounds what the model, the sums or the updates tell of a record.",),
)


def privacy_statement(study: Study) -> Statement:
    """What the study's privacy comes to, if all its rounds are run. Imports dp-accounting where sites are hidden."""
    privacy = study.privacy
    if privacy is None:
        return NO_PRIVACY
    plain: list[str] = []
    exact: list[str] = []
    if privacy.training is not None:
        plain += _plainly_per_record(privacy.training, privacy.delta)
        exact.append(_exactly_per_record(privacy, privacy.training, study.rounds.count))
    if privacy.update is not None:
        plain.append(_plainly_per_site("before its result was sent", "everybody"))
        exact.append(_exactly_before_sending(privacy, privacy.update, study))
    if privacy.average is not None:
        outside = "those who are not among the sites"
        plain.append(_plainly_per_site("after the results were averaged", outside))
        exact.append(_exactly_after_averaging(privacy, privacy.average, study))
    return Statement((*plain, *_plain_limits(privacy)), (*exact, *_exact_limits(privacy)))


def _plainly_per_record(training: TrainingPrivacy, delta: float) -> Iterator[str]:
    yield (
        "While it trained, each site mixed random noise into what it learned, so much that the model comes out nearly "
        "the same whether or not any one record was used."
    )
    if training.epsilon is not None:
        yield (
            f"How nearly: whatever the model shows, it would show with at most {math.exp(training.epsilon):.3g} times "
            f"the probability, and at least 1/{math.exp(training.epsilon):.3g} of it, had your record not been there "
            f"(epsilon {training.epsilon:g}), but for a chance of {delta:g}."
        )
    yield (
        "If several records are about you, this holds for all of them together at a site that has named whose each "
        "record is. Elsewhere it holds for each of them, and for all of them together far less."
    )


def _exactly_per_record(privacy: Privacy, training: TrainingPrivacy, rounds: int) -> str:
    covered, delta = rounds + privacy.spare_rounds, privacy.delta
    if training.epsilon is not None:
        strength = (
            f"each site chooses the least noise multiplier at which the PLD accountant gives epsilon <= "
            f"{training.epsilon:g} at delta = {delta:g} for its number of records, over {covered} rounds "
            f"({privacy.spare_rounds} of them spare); a round beyond them is refused by the site"
        )
    else:
        strength = (
            f"noise multiplier {training.noise_multiplier:g}; epsilon at delta = {delta:g} depends on a site's number "
            "of records and is on its ledger"
        )
    return (
        f"DP-SGD (Abadi et al. 2016): Poisson sampling with {training.batch_size} expected records a step, "
        f"{training.steps} steps a round, per-record gradients clipped to an L2 norm of {training.clip:g}, Gaussian "
        f"noise; {strength}. Unit: one training record, or, at a site whose data set names units (patients, say), one "
        "unit with all its records, of which a random one stands for it in a step; records are then counted as units. "
        "Neighbours differ by one unit added or removed. Holds against everybody who sees the model, the sums or the "
        "site's own updates."
    )


def _plainly_per_site(when: str, whom: str) -> str:
    return (
        f"Each site's result of a round was cut to a fixed size, and random noise was mixed in {when}, so that {whom} "
        "can less easily tell what a single site contributed."
    )


def _exactly_before_sending(privacy: Privacy, update: UpdatePrivacy, study: Study) -> str:
    against = "everybody who sees an update, the model or the sums"
    if study.protection.mode == "secagg":
        against = (
            f"the server, outsiders and up to {study.protection.colluders} colluding sites, as long as the secure "
            "aggregation holds"
        )
    return (
        f"Noise before sending: each site's update is clipped to an L2 norm of {update.clip:g} and gets its share of "
        f"discrete Gaussian noise (Kairouz, Liu, Steinke 2021), noise multiplier {update.noise_multiplier:g} a round; "
        f"{_over_rounds(privacy, update.noise_multiplier, study)}. Unit: one site, its whole update of a round, added "
        f"or removed. Holds against {against}."
    )


def _exactly_after_averaging(privacy: Privacy, average: AveragePrivacy, study: Study) -> str:
    drawn = "by all sites from a key that only they have" if study.protection.mode == "secagg" else "by the server"
    return (
        f"Noise after averaging: discrete Gaussian noise on the sum of updates clipped to an L2 norm of "
        f"{average.clip:g}, noise multiplier {average.noise_multiplier:g} a round, drawn {drawn}; "
        f"{_over_rounds(privacy, average.noise_multiplier, study)}. Unit: one site, added or removed. Holds against "
        "those who see the model and did not draw the noise."
    )


def _over_rounds(privacy: Privacy, noise: float, study: Study) -> str:
    from quorate.privacy.accounting import epsilon  # imports numpy

    covered = study.rounds.count + privacy.spare_rounds
    found = epsilon([Event(noise, 1.0, covered)], privacy.delta)
    return f"epsilon {found:.3g} at delta = {privacy.delta:g} over {covered} rounds, spare ones included"


def _plain_limits(privacy: Privacy) -> Iterator[str]:
    yield (
        "Some records were kept aside to measure how good the model is. They were not trained on; what was counted on "
        "them was told as rates of all sites together, without noise."
    )
    if privacy.training is None:
        yield "Nothing was done to hide single records."


def _exact_limits(privacy: Privacy) -> Iterator[str]:
    yield (
        "Outside of every epsilon: the held-out records (pooled rates, rounded, without noise), the number of records "
        "of all sites together, which the sites learn, and whatever was decided by looking at data before the study."
    )
    if privacy.training is None:
        yield "No statement is made about single records."
    elif privacy.update_clip is not None:
        yield "The statements per record and per site are about different neighbours and are not added."
