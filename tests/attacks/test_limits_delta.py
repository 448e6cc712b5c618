"""A study with a large delta, published to loosen the limits that a site set on what its records are used for.

An epsilon means something only at its delta. Held at the delta of the study that asks, a limit for ever of the same
epsilon paid for 1,315 steps at 1e-5 and for 2,000 at 5e-4: whoever publishes the studies chose.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from quorate.errors import BudgetExhaustedError
from quorate.privacy.accounting import adaptive_epsilon
from quorate.privacy.events import Event
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.entries import Reserved, Spent
from tests.client.rounds.test_training import Site, Task, study
from tests.client.rounds.test_training import site as site  # the fixture

RECORDS, BATCH, NOISE = 1000, 20, 1.0
STEP = Event(NOISE, BATCH / RECORDS)
STRICT, LOOSE = 1e-5, 5e-4
LIMIT = adaptive_epsilon([replace(STEP, count=1315)], STRICT)


def steps(count: int, delta: float) -> dict[str, object]:
    training = {"clip": 1.0, "batch_size": BATCH, "steps": count, "noise_multiplier": NOISE}
    return {"delta": delta, "spare_rounds": 0, "training": training}


@pytest.mark.parametrize("limit", ["epsilon_per_run", "epsilon_per_year", "epsilon_ever"])
def test_a_study_s_delta_does_not_loosen_a_limit(site: Site, limit: str) -> None:
    assert adaptive_epsilon([replace(STEP, count=2000)], LOOSE) < LIMIT  # the attack pays, without the policy's delta
    site.task = Task(records=RECORDS)
    site.policy = PrivacyPolicy.model_validate({limit: LIMIT})
    site.refused(study(rounds=1, **steps(2000, LOOSE)), BudgetExhaustedError)


def test_studies_with_small_and_large_deltas_share_one_budget(site: Site) -> None:
    """The first study fills it; the second one's delta must not make room in what the first has spent."""
    site.task = Task(records=RECORDS)
    site.policy = PrivacyPolicy(epsilon_ever=LIMIT)
    site.train(study(rounds=1, **steps(1315, STRICT)))
    refusal = site.refused(study(rounds=1, **steps(100, LOOSE)), BudgetExhaustedError)
    assert refusal.expected == f"epsilon_ever = {LIMIT:g} at most (delta 1e-05)"


def test_a_study_with_a_smaller_delta_than_the_policy_s_pays_no_more_for_it(site: Site) -> None:
    site.task = Task(records=RECORDS)
    site.policy = PrivacyPolicy(epsilon_ever=LIMIT)
    site.train(study(rounds=1, **steps(1315, 1e-9)))


def test_the_ledger_states_all_studies_at_the_policy_s_delta(site: Site) -> None:
    site.task = Task(records=RECORDS)
    for number, delta in enumerate((STRICT, LOOSE), 1):
        site.train(study(rounds=1, **steps(100, delta)), number)
    stated = {entry.content.delta for entry in site.ledger.entries.all() if isinstance(entry.content, Reserved | Spent)}
    assert stated == {STRICT}
