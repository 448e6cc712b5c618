"""What a study promises about the people in the data: in plain words, and in exact terms.

The sentences are promises, so they are made from the study's own terms and kept in one place: the site's administrator
reads them before approving, and the report repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from quorate.privacy.evaluation import tally_form
from quorate.privacy.events import Event
from quorate.privacy.training_data import exactly_synthetic, plainly_synthetic
from quorate.study.privacy_section import AveragePrivacy, EvaluationPrivacy, Privacy, TrainingPrivacy, UpdatePrivacy
from quorate.study.study import Study
from quorate.tally import MIN_RECORDS


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
    exact=(
        "No differential privacy: no epsilon bounds what the model, the sums or the updates tell of a record. Each "
        "site's privacy ledger holds the run as one without bound, and no later epsilon for these records includes it.",
    ),
)


def privacy_statement(study: Study) -> Statement:
    """What the study's privacy comes to, if all its rounds are run. Imports dp-accounting where sites are hidden."""
    privacy = study.privacy
    if privacy is None and study.training_data == "synthetic":
        held_out = (_PLAINLY_EXACT,) if study.tells_exact_counts else ()
        return Statement((*plainly_synthetic(study), *held_out), (exactly_synthetic(study), _exact_evaluation(study)))
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
    if privacy.evaluation is not None:
        plain.append(_PLAINLY_ON_COUNTS)
        exact.append(_exactly_on_counts(privacy, privacy.evaluation, study))
    return Statement((*plain, *_plain_limits(privacy, study)), (*exact, *_exact_limits(privacy, study)))


NEIGHBOURING_ROUNDS = (
    "Sites help to open few sums of the same input, but two rounds are not the same input: of a site that is in one "
    "round and missing in the next, the difference of the two sums tells nearly as much as its update would. Only "
    "noise limits that."
)
"""What is left open wherever sites open the sums."""


def evaluation_statement(study: Study) -> tuple[str, ...]:
    """What trying the model on held-out records tells, and whom; one sentence or more in each entry."""
    if study.guest is not None:
        return ("What the app evaluates, on which records, and whom it tells is its own affair.",)
    if not study.evaluations:
        return ("The model is not tried on held-out records: nothing is told of them.",)
    counts = f"how many of each class were taken for which, and histograms of scores in {tally_form(study).bins} bins"
    if study.tells_exact_counts:
        counts += ", with the summed loss"
    when = "the last round" if study.evaluations == 1 else "each round"
    return (
        f"After {when} every site tries the model on the records that it keeps aside for testing. It counts {counts}.",
        *(_whom_counts_are_told(study) if study.protection.mode == "none" else _whom_counts_are_told_secretly(study)),
        f"The operator is told rates of all sites together, each over at least {MIN_RECORDS} records.",
        _how_exact(study),
    )


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
    against = _against(study, unprotected="everybody who sees an update, the model or the sums")
    return (
        f"Noise before sending: each site's update is clipped to an L2 norm of {update.clip:g} and gets its share of "
        f"discrete Gaussian noise (Kairouz, Liu, Steinke 2021), noise multiplier {update.noise_multiplier:g} a round; "
        f"{_over_rounds(privacy, update.noise_multiplier, study)}. Unit: one site, its whole update of a round, added "
        f"or removed. Holds against {against}."
    )


def _exactly_after_averaging(privacy: Privacy, average: AveragePrivacy, study: Study) -> str:
    drawn = {
        "secagg": "by all sites from a key that only they have",
        "enclave": "by the attested machine",
        "none": "by the server",
    }[study.protection.mode]
    return (
        f"Noise after averaging: discrete Gaussian noise on the sum of updates clipped to an L2 norm of "
        f"{average.clip:g}, noise multiplier {average.noise_multiplier:g} a round, drawn {drawn}; "
        f"{_over_rounds(privacy, average.noise_multiplier, study)}. Unit: one site, added or removed. Holds against "
        "those who see the model and did not draw the noise."
    )


_PLAINLY_ON_COUNTS = (
    "Some records were kept aside to measure how good the model is. They were not trained on. Random noise was mixed "
    "into what was counted on them before it left the site."
)


_PLAINLY_EXACT = (
    "Some records were kept aside to measure how good the model is. They were not trained on; what was counted on them "
    "was told without noise, and no promise covers it."
)


def _exactly_on_counts(privacy: Privacy, evaluation: EvaluationPrivacy, study: Study) -> str:
    against = _against(study, unprotected="everybody")
    return (
        f"Noise on the evaluation: discrete Gaussian noise on all counts over held-out records, noise multiplier "
        f"{evaluation.noise_multiplier:g} (over the L2 norm of what one record changes) an evaluation; "
        f"{_over(study.evaluations + privacy.spare_rounds, 'evaluations', privacy, evaluation.noise_multiplier)}. "
        f"Unit: one held-out record, added or removed. Holds against {against}."
    )


def _against(study: Study, *, unprotected: str) -> str:
    """Against whom noise holds of which a site adds a share where sums are secure, and else all."""
    if study.protection.mode == "none":
        return unprotected
    lock = "the secure aggregation" if study.protection.mode == "secagg" else "the attested machine"
    return f"the server, outsiders and up to {study.protection.colluders} colluding sites, as long as {lock} holds"


def _over_rounds(privacy: Privacy, noise: float, study: Study) -> str:
    return _over(study.rounds.count + privacy.spare_rounds, "rounds", privacy, noise)


def _over(count: int, releases: str, privacy: Privacy, noise: float) -> str:
    from quorate.privacy.accounting import epsilon  # imports numpy

    found = epsilon([Event(noise, 1.0, count)], privacy.delta)
    return f"epsilon {found:.3g} at delta = {privacy.delta:g} over {count} {releases}, spare ones included"


def _whom_counts_are_told_secretly(study: Study) -> Iterator[str]:
    yield "All sites of the study open the sums of these counts; the server does not see them."
    if study.protection.mode == "enclave":
        yield "The attested machine has the counts of each site by itself."
    if study.tells_exact_counts:
        yield (
            "A site that knows a person's features can look up the person's bin in every sum. If it is empty once, the "
            "person is not among the held-out records; the more rounds and bins there are, the surer it gets of who is."
        )


def _whom_counts_are_told(study: Study) -> Iterator[str]:
    yield "The server has these counts of each site by itself."
    if study.tells_exact_counts:
        yield (
            "The server can make up the sums of updates, and so choose the models that are tried, as often as it "
            "likes: with one question after another it reads values of held-out records. A site's policy refuses that "
            "unless it says evaluation_without_protection = true."
        )


def _how_exact(study: Study) -> str:
    if study.tells_exact_counts:
        return (
            "These counts and rates carry no noise, and no epsilon covers them: whoever knows all held-out records but "
            "one can tell that one from them."
        )
    return "All of these counts carry noise; what they say of a held-out record has an epsilon of its own."


def _plain_limits(privacy: Privacy, study: Study) -> Iterator[str]:
    if study.tells_exact_counts:
        yield _PLAINLY_EXACT
    if study.training_data == "synthetic":
        yield from plainly_synthetic(study)
    elif privacy.training is None:
        yield "Nothing was done to hide single records."


def _exact_limits(privacy: Privacy, study: Study) -> Iterator[str]:
    yield _exact_evaluation(study)
    if study.training_data == "synthetic":
        yield exactly_synthetic(study)
    elif privacy.training is None:
        yield (
            "No statement is made about single records: each site's privacy ledger holds the run as one without bound."
        )
    elif privacy.update_clip is not None:
        yield "The statements per record and per site are about different neighbours and are not added."


def _exact_evaluation(study: Study) -> str:
    held_out = "the evaluation on held-out records (exact counts and rates), " if study.tells_exact_counts else ""
    return (
        f"Outside of every epsilon: {held_out}the number of records of all sites together, which the sites learn, and "
        "whatever was decided by looking at data before the study."
    )
