"""What a study says of the records that it trains on, in plain words: whose they are, who made them, what they promise.

Promises as ``statement.py`` makes them: read before a study is approved, repeated in the report.
"""

from __future__ import annotations

import math

from quorate.study.study import Study
from quorate.study.synthetic_section import Synthetic

IN_A_WORD = {
    "real": "real records",
    "synthetic": "synthetic records that each site made itself",
    "mixed": "real records, and synthetic ones that each site made itself",
}

PAID_BEFORE = "none of its own: what was promised when the synthetic records were made"
"""In a word, of a study on synthetic records alone without noise."""

_MADE = (
    "Synthetic records are made by each site itself, before the study, from the training part of its real records. "
    "Neither the server nor another site sees them.",
)
_TRIED = (
    "The model is tried on real records that were held out, which the synthetic ones were not made from.",
    "How good it is on them is not what it reaches on the synthetic ones: the difference is part of the result.",
)


def training_data_statement(study: Study) -> tuple[str, ...]:
    """On what the model is trained; one sentence or more in each entry."""
    if study.guest is not None:
        return ("What the app trains on is its own affair.",)
    if study.training_data == "real":
        return ("Each site trains on real records.",)
    if study.training_data == "mixed":
        on = "Each site trains on real records and on synthetic ones beside them."
    else:
        on = "Each site trains on synthetic records only, and on no real one."
    return (on, *_MADE, *(_TRIED if study.evaluations else ()), *_demands(study.synthetic))


def plainly_synthetic(study: Study) -> tuple[str, ...]:
    """For the people in the data, where a study trains on synthetic records only."""
    largest = study.synthetic.largest_epsilon if study.synthetic is not None else None
    told = (
        "The model was trained on made-up records only. What it shows of a real person is at most what those show, "
        "and they were made before.",
    )
    if largest is None:
        return (*told, f"{_NO_EPSILON} Ask the site that has your record whether it mixed noise in when it made them.")
    times = f"{math.exp(largest):.3g}"
    return (
        *told,
        "When it made them, each site mixed in random noise, so much that they come out nearly the same whether or "
        f"not any one record was used: whatever they show, they would show with at most {times} times the "
        f"probability, and at least 1/{times} of it, had your record not been there (epsilon {largest:g} at most).",
    )


def exactly_synthetic(study: Study) -> str:
    """For experts, of single records."""
    largest = study.synthetic.largest_epsilon if study.synthetic is not None else None
    promise = (
        f"each site's set was made with epsilon <= {largest:g} per record or unit of its source's training part, at "
        "the delta in its lineage, and one made without is refused by the site"
        if largest is not None
        else "the study sets no epsilon: a site may have made its set with any, or where its policy allows it without"
    )
    return (
        "Training on synthetic records is post-processing of what each site released when it made them, and is on its "
        f"ledger as that; {promise}. Several sets of one source add up on the ledger. Holds against everybody."
    )


_NO_EPSILON = "This study does not demand that they hide single records."


def _demands(limits: Synthetic | None) -> tuple[str, ...]:
    found = dict(limits.limits) if limits is not None else {}
    epsilon, risk, loss = (found.get(f"largest_{name}") for name in ("epsilon", "risk", "utility_loss"))
    if epsilon is not None:
        promise = (
            f"A site uses only a set that it made with differential privacy, epsilon {epsilon:g} at most for each of "
            "its real records or units."
        )
    else:
        promise = (
            "The study demands no differential privacy of them: they may tell of single real records what a site's "
            "own policy lets them."
        )
    report = [f"an attacker gains more than {risk:g}"] if risk is not None else []
    report += [f"a model loses more than {loss:g} of area under the curve"] if loss is not None else []
    refused = (f"It refuses one by whose report {' or '.join(report)}.",) if report else ()
    return (promise, *refused, "Each site's policy may ask for more.")
