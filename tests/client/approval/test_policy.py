"""What a site's policy refuses."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import (
    ConfigError,
    OutsideHoursError,
    PolicyError,
    PrivacyRefusedError,
    ProtectionRefusedError,
    RosterTooSmallError,
    StudyExpiredError,
    SyntheticRefusedError,
)
from quorate.study.study import Protection, Release, Rounds, Site, Study, TaskRef
from quorate_client.approval.policy import AttestedPolicy, Policy, PrivacyPolicy, SyntheticPolicy, require_valid
from quorate_client.approval.policy_file import DEFAULT_POLICY_TOML, policy_now, read_policy
from quorate_client.site.database import make_state
from quorate_client.site.folder import SiteFolder

OPEN = Policy(protection=frozenset({"none"}), evaluation_without_protection=True)
SECTIONS = {"privacy": PrivacyPolicy, "synthetic": SyntheticPolicy, "attestation": AttestedPolicy}
KEYS = {*Policy.model_fields, *(key for section in SECTIONS.values() for key in section.model_fields)} - set(SECTIONS)
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "policy.md"


def study(sites: int = 4, quorum: int = 3, **changes: object) -> Study:
    content = {
        "consortium": "testers",
        "name": "hearts",
        "purpose": "To see whether it works",
        "task": TaskRef(name="tabular-classifier", digest="0" * 64),
        "rounds": Rounds(count=3, quorum=quorum),
        "protection": Protection(mode="none"),
        "sites": [Site(name=f"site-{i}", signing_key=f"{i:064x}") for i in range(sites)],
    }
    return Study.model_validate(content | changes)


def test_a_study_within_the_policy_passes() -> None:
    OPEN.check(study())


def test_without_a_file_no_unprotected_study_passes() -> None:
    with pytest.raises(ProtectionRefusedError) as caught:
        Policy().check(study())

    assert caught.value.expected == 'protection = ["secagg"]'


def test_without_protection_exact_counts_over_held_out_records_need_a_word_of_the_policy() -> None:
    closed = Policy(protection=frozenset({"none"}))
    rounds = {"count": 3, "quorum": 3}
    with pytest.raises(ProtectionRefusedError) as caught:
        closed.check(study())
    assert caught.value.expected == "evaluation_without_protection = false"
    with pytest.raises(ProtectionRefusedError):
        closed.check(study(rounds=rounds | {"evaluate": "last"}))
    closed.check(study(rounds=rounds | {"evaluate": "never"}))
    noisy = {"delta": 1e-5, "training": TRAINING, "evaluation": {"noise_multiplier": 1.0}}
    closed.check(study(privacy=noisy))
    Policy().check(study(protection=Protection(mode="secagg")))


def test_a_study_of_too_few_sites_is_refused() -> None:
    with pytest.raises(RosterTooSmallError, match="too few sites"):
        OPEN.check(study(sites=2, quorum=2))


def test_a_study_whose_rounds_count_with_too_few_sites_is_refused() -> None:
    with pytest.raises(RosterTooSmallError, match="counts rounds of fewer sites"):
        OPEN.check(study(sites=4, quorum=2))


def test_a_model_is_not_released_to_the_operator_unless_allowed() -> None:
    released = study(release=Release(model="operator"))

    with pytest.raises(PolicyError, match="releases its model to the operator"):
        OPEN.check(released)
    OPEN.model_copy(update={"release": frozenset({"sites", "operator"})}).check(released)


def test_a_task_that_is_not_listed_is_refused() -> None:
    with pytest.raises(PolicyError, match="runs a task"):
        OPEN.check(study(task=TaskRef(name="keylogger", digest="0" * 64)))


def test_the_written_default_is_the_default(tmp_path: Path) -> None:
    folder = SiteFolder(tmp_path)
    make_state(folder.database)
    folder.policy.write_text(DEFAULT_POLICY_TOML)

    assert read_policy(folder) == Policy()
    named = {line.removeprefix("# ").split(" = ")[0] for line in DEFAULT_POLICY_TOML.splitlines() if " = " in line}
    assert named >= KEYS


@pytest.mark.parametrize(
    "text", ['protection = ["hope"]', "minimum_sites = 0", 'release = ["everybody"]', "minimum_site = 3", "= broken",
     'hours = "20-6"', 'hours = "24:00-06:00"', "[privacy]\nepsilon = 3", '[privacy]\nrequire = ["hope"]',
     "[privacy]\nepsilon_ever = inf", "[privacy]\nleast_noise = -1", '[synthetic]\ntraining_data = ["fake"]',
     "[synthetic]\nlargest_risk = 2", "[synthetic]\nlargest_epsilon = 0"],
)  # fmt: skip
def test_a_policy_that_cannot_be_read_lets_nothing_through(tmp_path: Path, text: str) -> None:
    folder = SiteFolder(tmp_path)
    folder.policy.write_text(text)

    with pytest.raises(ConfigError):
        read_policy(folder)
    with pytest.raises(PolicyError, match="nothing is allowed"):
        policy_now(folder)


def test_the_reference_names_every_key() -> None:
    text = REFERENCE.read_text()

    assert {key for key in KEYS if f"`{key}`" not in text} == set()


# --- what is trained on ---


@pytest.mark.parametrize("training_data", ["real", "synthetic", "mixed"])
def test_a_study_trains_only_on_what_the_policy_names(training_data: str) -> None:
    others = frozenset({"real", "synthetic", "mixed"}) - {training_data}
    of = study(training_data=training_data)
    OPEN.check(of)
    with pytest.raises(SyntheticRefusedError) as caught:
        OPEN.model_copy(update={"synthetic": SyntheticPolicy(training_data=others)}).check(of)
    assert caught.value.got == f'training_data = "{training_data}"'


def test_a_limit_on_epsilon_lets_made_records_pass_and_not_real_ones_beside_them() -> None:
    bounding = OPEN.model_copy(update={"privacy": PrivacyPolicy(epsilon_ever=9.0)})
    bounding.check(study(training_data="synthetic"))
    for training_data in ("real", "mixed"):
        with pytest.raises(PrivacyRefusedError, match="releases what no epsilon bounds"):
            bounding.check(study(training_data=training_data))


# --- hours and expiry ---


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("00:00-24:00", ["00:00", "12:00", "23:59"], []),
        ("08:00-24:00", ["08:00", "23:59"], ["00:00", "07:59"]),
        ("08:00-18:00", ["08:00", "17:59"], ["07:59", "18:00"]),
        ("20:00-06:00", ["20:00", "23:59", "00:00", "05:59"], ["06:00", "19:59"]),
    ],
)
def test_work_is_refused_outside_the_hours(hours: str, inside: list[str], outside: list[str]) -> None:
    policy = Policy(hours=hours)
    for clock in inside:
        policy.check_hour(datetime.fromisoformat(f"2026-03-01T{clock}:00+01:00"))
    for clock in outside:
        with pytest.raises(OutsideHoursError):
            policy.check_hour(datetime.fromisoformat(f"2026-03-01T{clock}:00+01:00"))


def test_a_study_is_over_after_its_last_day_wherever_the_site_is() -> None:
    last = study(expires="2026-03-01")
    require_valid(last, datetime.fromisoformat("2026-03-02T00:59:00+01:00"))
    with pytest.raises(StudyExpiredError):
        require_valid(last, datetime.fromisoformat("2026-03-02T01:00:00+01:00"))
    require_valid(study(), datetime.fromisoformat("2999-01-01T00:00:00+00:00"))


# --- privacy ---

TRAINING = {"clip": 1.0, "batch_size": 32, "steps": 4, "noise_multiplier": 1.0}


def private(delta: float = 1e-5, **training: object) -> Study:
    return study(privacy={"delta": delta, "training": TRAINING | training})


def counting_noisily(noise: float) -> Study:
    return study(privacy={"delta": 1e-5, "training": TRAINING, "evaluation": {"noise_multiplier": noise}})


def strict(**keys: object) -> Policy:
    return OPEN.model_copy(update={"privacy": PrivacyPolicy.model_validate(keys)})


@pytest.mark.parametrize(
    ("policy", "refused", "allowed"),
    [
        ({"require": ["training"]}, study(), private()),
        (
            {"require": ["training", "average"]},
            private(),
            study(
                rounds={"count": 3, "quorum": 3, "weights": "equal"},
                privacy={"delta": 1e-5, "training": TRAINING, "average": {"clip": 1.0, "noise_multiplier": 1.0}},
            ),
        ),
        ({"require": ["evaluation"]}, private(), counting_noisily(1.0)),
        ({"least_noise": 1.0}, private(noise_multiplier=0.99), private()),
        ({"least_noise": 1.0}, counting_noisily(0.99), counting_noisily(1.0)),
        ({"largest_clip": 1.0}, private(clip=1.01), private()),
        ({"largest_delta": 1e-5}, private(delta=1.01e-5), private()),
        (
            {"epsilon_per_run": 3.0},
            private(noise_multiplier=None, epsilon=3.01),
            private(noise_multiplier=None, epsilon=3.0),
        ),
        (
            {"epsilon_per_run": 3.0, "delta": 1e-6},
            private(noise_multiplier=None, epsilon=3.01),
            private(noise_multiplier=None, epsilon=3.01, delta=1e-7),  # less at 1e-6; held when the noise is known
        ),
    ],
    ids=[
        "none",
        "one of two",
        "exact counts",
        "noise",
        "noise on counts",
        "clip",
        "delta",
        "epsilon",
        "epsilon, less delta",
    ],
)
def test_a_study_that_promises_less_privacy_than_demanded_is_refused(
    policy: dict[str, object], refused: Study, allowed: Study
) -> None:
    with pytest.raises(PrivacyRefusedError) as caught:
        strict(**policy).check(refused)
    assert caught.value.expected.startswith(f"privacy.{next(iter(policy))} = ")
    strict(**policy).check(allowed)


@pytest.mark.parametrize("limit", ["epsilon_per_run", "epsilon_per_year", "epsilon_ever"])
def test_where_there_is_a_budget_nothing_trains_without_privacy(limit: str) -> None:
    noise_on_parameters = study(
        rounds={"count": 3, "quorum": 3, "weights": "equal"},
        privacy={"delta": 1e-5, "average": {"clip": 1.0, "noise_multiplier": 1.0}},
    )
    for refused in (study(), noise_on_parameters):
        with pytest.raises(PrivacyRefusedError, match="no epsilon bounds"):
            strict(**{limit: 3.0}).check(refused)
    strict(**{limit: 3.0}).check(private())


@given(
    floors=st.fixed_dictionaries(
        {
            "least_noise": st.floats(0.0, 4.0),
            "largest_clip": st.none() | st.floats(0.01, 4.0),
            "largest_delta": st.none() | st.floats(1e-9, 0.05),
            "epsilon_per_run": st.none() | st.floats(0.1, 8.0),
        }
    ),
    delta=st.floats(1e-9, 0.05),
    clip=st.floats(0.01, 4.0),
    noise=st.none() | st.floats(0.01, 4.0),
    epsilon=st.floats(0.1, 8.0),
)
def test_no_study_passes_that_breaks_a_floor(
    floors: dict[str, float | None], delta: float, clip: float, noise: float | None, epsilon: float
) -> None:
    target = epsilon if noise is None else None
    asked = private(delta=delta, clip=clip, noise_multiplier=noise, epsilon=target)
    breaks = (
        (noise is not None and noise < (floors["least_noise"] or 0.0))
        or (floors["largest_clip"] is not None and clip > floors["largest_clip"])
        or (floors["largest_delta"] is not None and delta > floors["largest_delta"])
        or (
            target is not None
            and floors["epsilon_per_run"] is not None
            and target > floors["epsilon_per_run"]
            and delta >= PrivacyPolicy().delta
        )
    )
    broken = [rule for rule in strict(**floors).rules(asked) if not rule.is_met]
    assert bool(broken) == breaks
    if breaks:
        with pytest.raises(PrivacyRefusedError):
            strict(**floors).check(asked)
