"""How large a study's noise on parameters is, and that its integers have room for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from quorate.aggregation.packing import MAX_SITES, Packing
from quorate.aggregation.plain import PlainScheme, weight_of
from quorate.aggregation.schemes import MIN_STEPS, packing_of, plain_scheme_of
from quorate.errors import PrivacyRefusedError
from quorate.privacy.noise import SeededRandomness, discrete_gaussian
from quorate.privacy.update_noise import UpdateNoise, update_noise
from quorate.study.rules import Rules
from quorate.study.study import Study

SITES, COLLUDERS = 5, 1
FLOOR = Rules(SITES, COLLUDERS).floor


def study(mode: str = "secagg", **privacy: Any) -> Study:
    return Study.model_validate(
        {
            "consortium": "testers",
            "name": "hearts",
            "purpose": "To see whether it works",
            "task": {"name": "tabular-classifier", "digest": "0" * 64},
            "rounds": {"count": 3, "quorum": FLOOR, "weights": "equal"},
            "protection": {"mode": mode, "colluders": COLLUDERS, "value_bound": 4.0},
            "privacy": {"delta": 1e-4} | privacy if privacy else None,
            "sites": [{"name": f"site-{i}", "signing_key": f"{i:064x}"} for i in range(SITES)],
        }
    )


def of(noise_multiplier: float, clip: float = 0.5) -> dict[str, float]:
    return {"clip": clip, "noise_multiplier": noise_multiplier}


TRAINING = {"clip": 1.0, "batch_size": 32, "steps": 4, "noise_multiplier": 1.0}


@pytest.mark.parametrize("changes", [{}, {"training": TRAINING}])
def test_a_study_without_noise_on_parameters_is_encoded_as_ever(changes: dict[str, Any]) -> None:
    assert update_noise(study(**changes)) == UpdateNoise()
    assert packing_of(study(**changes)) == Packing(4.0, SITES)
    assert plain_scheme_of(study("none", **changes)) == PlainScheme(4.0, SITES)


def test_the_fewest_survivors_without_the_colluders_add_up_to_the_noise_that_was_promised() -> None:
    share = update_noise(study(update=of(2.0))).share
    assert math.sqrt(FLOOR - COLLUDERS) * share == pytest.approx(2.0 * 0.5 / SITES)


def test_without_protection_each_site_adds_it_all() -> None:
    assert update_noise(study("none", update=of(2.0))).share == pytest.approx(2.0 * 0.5 / SITES)


def test_noise_after_averaging_is_drawn_once() -> None:
    noise = update_noise(study(average=of(3.0)))
    assert (noise.share, noise.average, noise.total) == (0.0, pytest.approx(0.3), pytest.approx(0.3))


@pytest.mark.parametrize("mode", ["secagg", "none"])
def test_no_lane_overflows_with_all_the_noise_of_all_sites_at_nine_deviations(mode: str) -> None:
    """Each coordinate of each site at its bound, and the noise of the sum at 9 standard deviations."""
    of_study = study(mode, update=of(20.0), average=of(30.0))
    noise = update_noise(of_study)
    scheme = packing_of(of_study) if mode == "secagg" else plain_scheme_of(of_study)
    worst = np.full(7, scheme.bound)
    parts = [scheme.quantise(worst, weight_of(1, SITES), toward_zero=True)[0] for _ in range(SITES)]
    total = sum(parts) + math.floor(9 * noise.total / scheme.step)
    if isinstance(scheme, Packing):
        opened = scheme.decode(scheme.combine(total), 7)
        assert opened.tolist() == total.tolist()
        assert int(total[0]) < 1 << scheme.lane_bits - 1
    else:
        assert scheme.combine(total).view(np.int32).tolist() == total.tolist()


def test_the_bound_of_a_coordinate_is_not_more_than_that_of_the_update() -> None:
    assert packing_of(study(update=of(2.0, clip=0.5))).bound == 0.5
    assert packing_of(study(update=of(2.0, clip=50.0))).bound == 4.0


@pytest.mark.parametrize("mechanism", ["update", "average"])
def test_noise_that_is_too_small_for_the_integers_is_refused(mechanism: str) -> None:
    with pytest.raises(PrivacyRefusedError, match="too small to be drawn exactly"):
        packing_of(study(**{mechanism: of(1e-6)}))
    with pytest.raises(PrivacyRefusedError, match="too small to be drawn exactly"):
        plain_scheme_of(study("none", **{mechanism: of(1e-10)}))


def slack(sigma: float, shares: int, dimension: int) -> float:
    """tau P of Kairouz, Liu, Steinke 2021, theorem 1: what a sum of shares costs more in epsilon than one Gaussian."""
    return 10 * dimension * sum(math.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1)) for k in range(1, shares))


def test_from_the_least_noise_on_a_sum_of_shares_is_as_good_as_one_draw() -> None:
    assert slack(MIN_STEPS, MAX_SITES, 1 << 40) < 1e-50
    assert slack(1.0, 10, 1_000_000) > 100


def test_the_bound_on_a_sum_of_shares_holds_for_its_true_density() -> None:
    sigma, shares = 0.6, 3
    support = np.arange(-40, 41)

    def density(std: float) -> Any:
        raw = np.exp(-(support.astype(np.float64) ** 2) / (2 * std * std))
        return raw / raw.sum()

    one = density(sigma)
    total = np.convolve(np.convolve(one, one, mode="same"), one, mode="same")[36:45]
    furthest = float(np.abs(np.log(total / density(sigma * math.sqrt(shares))[36:45])).max())
    assert 0 < furthest <= slack(sigma, shares, 1) / 2


def test_shares_of_sites_add_up_to_the_standard_deviation_of_the_sum() -> None:
    of_study = study(update=of(2.0))
    step, noise = packing_of(of_study).step, update_noise(of_study)
    count = 100_000
    honest = FLOOR - COLLUDERS
    total = sum(discrete_gaussian(SeededRandomness(bytes([i]) * 32), noise.share / step, count) for i in range(honest))
    found = float(np.std(np.asarray(total))) * step
    assert found == pytest.approx(2.0 * 0.5 / SITES, rel=4 / math.sqrt(2 * count))
