"""What a generation costs, and with how much noise each stage pays for it."""

from __future__ import annotations

import math

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant

from quorate.errors import PrivacyRefusedError
from quorate.privacy.accounting import adaptive_epsilon
from quorate.privacy.accounting import epsilon as epsilon_of
from quorate_client.synthetic.generator import plan
from tests.client.synthetic.generator.kit import DELTA, MIXED, schema_of

SCHEMA = schema_of(MIXED)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_events_cost_what_was_promised_by_an_independent_account(epsilon: float, delta: float) -> None:
    accountant = PLDAccountant()
    for event in plan(SCHEMA, epsilon, delta).events:
        assert event.sampling_rate == 1
        assert event.count == 1
        accountant.compose(GaussianDpEvent(event.noise_multiplier))
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, rel=0.005)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_the_ledgers_figure_is_never_above_the_promise(epsilon: float) -> None:
    events = plan(SCHEMA, epsilon, DELTA).events
    assert 0.99 * epsilon < epsilon_of(events, DELTA) <= epsilon
    assert adaptive_epsilon(events, DELTA) < 1.5 * epsilon


def test_the_label_weighs_like_four_columns_and_the_stages_have_their_shares() -> None:
    planned = plan(SCHEMA, 1.0, DELTA)
    precisions = {name: getattr(planned.noise, name) ** -2 for name in planned.noise.__dataclass_fields__}
    total = sum(precisions.values())
    assert precisions["label"] == pytest.approx(precisions["columns"] / len(MIXED) * 4)
    assert (precisions["label"] + precisions["columns"]) / total == pytest.approx(0.15)
    assert [precisions[name] / total for name in ("labelled", "structure", "pairs")] == pytest.approx([0.3, 0.05, 0.5])
    assert math.fsum(event.noise_multiplier**-2 for event in planned.events) == pytest.approx(total)


def test_without_privacy_nothing_is_on_the_account_and_there_is_no_noise() -> None:
    planned = plan(SCHEMA, None, DELTA)
    assert planned.events == ()
    assert not any(getattr(planned.noise, name) for name in planned.noise.__dataclass_fields__)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-3), (-1.0, 1e-3), (math.inf, 1e-3), (1.0, 0.0), (1.0, 1.0), (1e-6, 1e-9)]
)
def test_a_promise_that_no_noise_keeps_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(PrivacyRefusedError):
        plan(SCHEMA, epsilon, delta)
