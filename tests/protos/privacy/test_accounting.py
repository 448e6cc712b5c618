"""Epsilon against dp-accounting composed from the raw steps one by one, against closed forms and against Opacus."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import PrivacyRefusedError
from quorate.privacy.accounting import (
    MAX_COUNT,
    ORDERS,
    Composition,
    adaptive_epsilon,
    affordable_count,
    epsilon,
    epsilon_of_rdp,
    noise_multiplier_for,
    rdp_cost,
)
from quorate.privacy.events import Event

HOSPITAL = Event(noise_multiplier=1.1, sampling_rate=32 / 199, count=105)
INSURER = Event(noise_multiplier=1.0, sampling_rate=256 / 10_000, count=800)

events = st.builds(
    Event,
    noise_multiplier=st.floats(0.6, 5),
    sampling_rate=st.sampled_from([0.01, 0.1, 0.3, 0.7, 1.0]),
    count=st.integers(0, 3),
)
schedules = st.lists(events, min_size=1, max_size=4)
deltas = st.sampled_from([1e-3, 1e-5, 1e-7])
slowly = settings(max_examples=15, deadline=None)


def raw(event: Event) -> object:
    """One release, as dp-accounting writes it."""
    return PoissonSampledDpEvent(event.sampling_rate, GaussianDpEvent(event.noise_multiplier))


def step_by_step(schedule: list[Event], accountant: PLDAccountant | RdpAccountant, delta: float) -> float:
    """Epsilon of the releases composed one at a time, nothing merged."""
    for event in schedule:
        for _ in range(event.count):
            accountant.compose(raw(event))
    return float(accountant.get_epsilon(delta))


# --- a fixed plan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("event", "delta", "known"), [(HOSPITAL, 1e-3, 7.13), (INSURER, 1e-5, 4.57)])
def test_plans_cost_what_is_known_of_them(event: Event, delta: float, known: float) -> None:
    assert epsilon([event], delta) == pytest.approx(known, abs=0.005)


@slowly
@given(schedules, deltas)
def test_epsilon_is_that_of_the_raw_steps_one_by_one(schedule: list[Event], delta: float) -> None:
    independent = step_by_step(schedule, PLDAccountant(value_discretization_interval=1e-3), delta)
    assert epsilon(schedule, delta) == pytest.approx(independent, rel=1e-3, abs=1e-4)


@slowly
@given(schedules, deltas)
def test_a_composition_costs_after_each_release_what_its_beginning_costs(schedule: list[Event], delta: float) -> None:
    composition = Composition()
    assert composition.epsilon(delta) == 0
    before = 0.0
    for length, event in enumerate(schedule, start=1):
        composition.add(event)
        assert composition.epsilon(delta) == pytest.approx(epsilon(schedule[:length], delta), rel=1e-12)
        assert composition.epsilon(delta) >= before * (1 - 1e-5)
        before = composition.epsilon(delta)
    assert Composition(schedule).epsilon(delta) == before


def test_rounds_of_a_composition_add_up() -> None:
    composition = Composition([HOSPITAL])
    composition.add(HOSPITAL)
    assert composition.epsilon(1e-3) == epsilon([Event(1.1, 32 / 199, 210)], 1e-3) > epsilon([HOSPITAL], 1e-3)


@slowly
@given(schedules, deltas, st.randoms(use_true_random=False))
def test_neither_order_nor_grouping_matters(schedule: list[Event], delta: float, random: object) -> None:
    single = [Event(e.noise_multiplier, e.sampling_rate) for e in schedule for _ in range(e.count)]
    random.shuffle(single)  # type: ignore[attr-defined]
    assert epsilon(single, delta) == pytest.approx(epsilon(schedule, delta), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8, 1e-12])
def test_unsampled_releases_cost_what_one_gaussian_costs(delta: float) -> None:
    plan = [Event(3.0, count=4), Event(5.0), Event(10.0, count=50)]
    together = 1 / math.sqrt(4 / 9 + 1 / 25 + 50 / 100)
    assert epsilon(plan, delta) == pytest.approx(get_epsilon_gaussian(together, delta), rel=1e-9)
    # And next to sampled ones that cost nearly nothing, nearly that: the numerical way agrees with the closed form.
    numerical = epsilon([*plan, Event(50.0, 1e-4)], delta)
    assert numerical == pytest.approx(get_epsilon_gaussian(together, delta), rel=1e-4 if delta > 1e-9 else 0.2)
    assert numerical >= get_epsilon_gaussian(together, delta) * (1 - 1e-6)


@pytest.mark.parametrize("sampling_rate", [0.01, 0.16, 0.5, 0.9, 1.0])
def test_more_releases_cost_more_and_more_noise_costs_less(sampling_rate: float) -> None:
    by_count = [epsilon([Event(1.0, sampling_rate, count)], 1e-5) for count in (0, 1, 2, 10, 11, 100, 110)]
    assert all(a < b * (1 + 1e-6) for a, b in pairwise(by_count))
    assert by_count[0] == 0 < by_count[1]
    by_noise = [epsilon([Event(noise, sampling_rate, 20)], 1e-5) for noise in (0.7, 0.71, 1.0, 2.0, 8.0, 100.0)]
    assert all(a > b for a, b in pairwise(by_noise))


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == adaptive_epsilon([], 1e-5) == 0
    nothing = [Event(1.0, 0.1, 0), Event(1e-9, 1.0, 0)]
    assert epsilon(nothing, 1e-5) == adaptive_epsilon(nothing, 1e-5) == 0


@pytest.mark.parametrize("sampling_rate", [0.001, 0.5, 1.0])
@pytest.mark.parametrize("noise", [5e-324, 1e-200, 1e-9, 1e-3, 0.02])
def test_hardly_any_noise_promises_nothing(noise: float, sampling_rate: float) -> None:
    assert epsilon([Event(noise, sampling_rate, 10), HOSPITAL], 1e-5) == math.inf


@pytest.mark.parametrize("sampling_rate", [1e-6, 0.5, 1.0])
@pytest.mark.parametrize("count", [10**9, 10**15, 10**30])
def test_very_many_releases_are_counted(count: int, sampling_rate: float) -> None:
    assert epsilon([Event(1.0, sampling_rate, count)], 1e-6) > epsilon([Event(1.0, sampling_rate, 10)], 1e-6)
    assert epsilon([Event(1.0, 0.5, count)], 1e-6) == math.inf


def test_very_much_noise_costs_next_to_nothing() -> None:
    assert 0 <= epsilon([Event(1e300, 0.5, 100)], 1e-5) < 1e-6
    assert 0 <= epsilon([Event(1.7e308, 1.0, 100)], 1e-5) < 1e-6
    assert 0 <= adaptive_epsilon([Event(1e300, 0.5, 100), Event(1.7e308)], 1e-5) < 1e-6
    assert 0 < epsilon([Event(300.0, 0.01, 1000)], 1e-6) < 0.005


def test_what_rounding_would_make_too_low_is_left_to_the_other_accountant() -> None:
    # All but unsampled, so the closed form holds; the composed distribution's epsilon is 0.3 % below it.
    release = Event(math.sqrt(30_000) / 0.3, 1 - 1e-9, 30_000)
    assert epsilon([release], 1e-12) >= get_epsilon_gaussian(1 / 0.3, 1e-12)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_a_delta_that_is_no_chance_is_refused(delta: float) -> None:
    for ask in (
        lambda: epsilon([INSURER], delta),
        lambda: adaptive_epsilon([INSURER], delta),
        lambda: epsilon_of_rdp(rdp_cost(INSURER), delta),
        lambda: noise_multiplier_for(1.0, delta, 0.1, 10),
        lambda: affordable_count(1.0, delta, 1.0, 0.1, []),
    ):
        with pytest.raises(PrivacyRefusedError, match="delta above 0"):
            ask()


# --- an adaptive sequence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("event", "delta", "low", "high"), [(HOSPITAL, 1e-3, 8.22, 8.31), (INSURER, 1e-5, 5.05, 5.07)])
def test_adaptive_sequences_cost_what_is_known_of_them(event: Event, delta: float, low: float, high: float) -> None:
    assert low < adaptive_epsilon([event], delta) < high
    # The plan's tighter figure is not only the smaller one of the two.
    assert epsilon([event], delta) < 0.95 * adaptive_epsilon([event], delta)


@slowly
@given(schedules, deltas)
def test_adaptive_epsilon_is_that_of_the_raw_steps_one_by_one(schedule: list[Event], delta: float) -> None:
    independent = step_by_step(schedule, RdpAccountant(ORDERS), delta)
    assert adaptive_epsilon(schedule, delta) == pytest.approx(independent, rel=1e-9, abs=1e-9)
    assert adaptive_epsilon(schedule, delta) >= epsilon(schedule, delta)


@slowly
@given(events, events, st.integers(0, 10**6))
def test_renyi_costs_add_up_and_grow_with_the_count(first: Event, second: Event, factor: int) -> None:
    many = rdp_cost(Event(first.noise_multiplier, first.sampling_rate, first.count * factor))
    np.testing.assert_allclose(many, rdp_cost(first) * factor if factor else np.zeros(len(ORDERS)), rtol=1e-12)
    total = rdp_cost(first) + rdp_cost(second)
    assert epsilon_of_rdp(total, 1e-5) == adaptive_epsilon([first, second], 1e-5)


def test_what_is_kept_of_a_cost_cannot_be_changed_by_who_got_it() -> None:
    for event in (Event(1.0, 0.1), Event(1.0, 0.1, 0)):
        before = rdp_cost(event).copy()
        cost = rdp_cost(event)
        cost += 1
        assert np.array_equal(rdp_cost(event), before)


@pytest.mark.parametrize("event", [HOSPITAL, INSURER, Event(2.0, 0.5, 40), Event(8.0, 1.0, 3)])
def test_opacus_comes_to_the_same_adaptive_epsilon(event: Event) -> None:
    from opacus.accountants.analysis import rdp as opacus

    theirs = opacus.compute_rdp(
        q=event.sampling_rate, noise_multiplier=event.noise_multiplier, steps=event.count, orders=ORDERS
    )
    ours, whole = rdp_cost(event), np.array([float(order).is_integer() for order in ORDERS])
    np.testing.assert_allclose(ours[whole], theirs[whole], rtol=1e-9)
    # Opacus subtracts where dp-accounting adds, in the series of fractional orders: ours is the upper bound.
    assert (ours >= theirs * (1 - 1e-9)).all()
    epsilon_there, _ = opacus.get_privacy_spent(orders=ORDERS, rdp=theirs, delta=1e-5)
    assert epsilon_there * (1 - 1e-9) <= adaptive_epsilon([event], 1e-5) < epsilon_there * 1.01


def test_orders_that_do_not_converge_are_left_out_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="absl"):
        cost = rdp_cost(Event(50.0, 0.5, 3))
        assert math.isinf(cost[0])
        assert math.isfinite(cost[ORDERS.index(2)])
        assert caplog.records == []
        # Only those, and only there.
        logging.getLogger("absl").warning("another failed to converge")
        assert len(caplog.records) == 1


# --- the way back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "delta", "sampling_rate", "count"),
    [
        (5.0, 1e-3, 32 / 199, 105),
        (4.57, 1e-5, 0.0256, 800),
        (0.01, 1e-6, 0.01, 1000),
        (100.0, 1e-5, 0.1, 10),
        (1.0, 1e-5, 1.0, 20),
        (0.1, 1e-5, 1.0, 1),
        (3.0, 1e-10, 0.01, 100),
    ],
)
def test_the_noise_for_a_promise_keeps_it_and_hardly_less_would_not(
    target: float, delta: float, sampling_rate: float, count: int
) -> None:
    noise = noise_multiplier_for(target, delta, sampling_rate, count)
    assert epsilon([Event(noise, sampling_rate, count)], delta) <= target
    assert epsilon([Event(noise * 0.997, sampling_rate, count)], delta) > target
    assert noise == float(f"{noise:.4g}")


def test_a_known_noise_is_found_again_from_what_it_costs() -> None:
    cost = epsilon([INSURER], 1e-5)
    found = noise_multiplier_for(cost, 1e-5, INSURER.sampling_rate, INSURER.count)
    assert found == pytest.approx(INSURER.noise_multiplier, rel=3e-3)


def test_a_promise_that_needs_no_noise_gets_little() -> None:
    assert noise_multiplier_for(1.0, 1e-3, 1e-6, 1) < 0.1


@pytest.mark.parametrize(
    ("target", "sampling_rate", "count"),
    [
        *[(0.0, 0.1, 10), (-1.0, 0.1, 10), (math.nan, 0.1, 10), (math.inf, 0.1, 10)],
        *[(1.0, 0.0, 10), (1.0, 1.1, 10), (1.0, 0.1, 0), (1.0, 0.1, -5)],
        *[(1e-5, 1.0, 100), (1e-9, 0.5, 1000), (1.0, 1.0, 10**12)],
    ],
)
def test_a_promise_that_no_noise_keeps_is_refused(target: float, sampling_rate: float, count: int) -> None:
    with pytest.raises(PrivacyRefusedError) as refusal:
        noise_multiplier_for(target, 1e-6, sampling_rate, count)
    assert refusal.value.expected
    assert refusal.value.got


# --- planning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spent", [[], [HOSPITAL], [Event(4.0, count=3), INSURER]])
def test_one_more_than_is_affordable_passes_the_limit(spent: list[Event]) -> None:
    limit = adaptive_epsilon(spent, 1e-3) + 1.5
    count = affordable_count(limit, 1e-3, 1.2, 0.05, spent)
    assert count > 1
    assert adaptive_epsilon([*spent, Event(1.2, 0.05, count)], 1e-3) <= limit
    assert adaptive_epsilon([*spent, Event(1.2, 0.05, count + 1)], 1e-3) > limit


def test_nothing_is_affordable_once_the_limit_is_passed_or_without_noise() -> None:
    assert affordable_count(8.0, 1e-3, 1.1, 0.1, [HOSPITAL]) == 0
    assert affordable_count(8.4, 1e-3, 1e-4, 1.0, []) == 0
    assert affordable_count(0.0, 1e-3, 1.0, 1.0, []) == 0


def test_a_planner_is_given_an_end() -> None:
    assert affordable_count(100.0, 1e-3, 1e5, 1e-3, []) == MAX_COUNT


def test_importing_the_module_does_not_import_the_accountants() -> None:
    program = (
        "import sys, quorate.privacy.accounting; print(*sorted({'dp_accounting', 'scipy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
