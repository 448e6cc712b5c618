"""What a site's policy refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import ConfigError, PolicyError, ProtectionRefusedError, RosterTooSmallError
from quorate.study import Protection, Release, Rounds, Site, Study, TaskRef
from quorate_client.policy import DEFAULT_POLICY_TOML, Policy, check_policy_now, read_policy

OPEN = Policy(protection=frozenset({"none"}))
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "policy.md"


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
    path = tmp_path / "policy.toml"
    path.write_text(DEFAULT_POLICY_TOML)

    assert read_policy(path) == Policy()
    assert set(Policy.model_fields) == {
        line.split(" = ")[0] for line in DEFAULT_POLICY_TOML.splitlines() if " = " in line and line[0] != "#"
    }


@pytest.mark.parametrize(
    "text", ['protection = ["hope"]', "minimum_sites = 0", 'release = ["everybody"]', "minimum_site = 3", "= broken"]
)
def test_a_policy_that_cannot_be_read_lets_nothing_through(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)

    with pytest.raises(ConfigError):
        read_policy(path)
    with pytest.raises(PolicyError, match="nothing is allowed"):
        check_policy_now(path, study())


def test_the_reference_names_every_key() -> None:
    text = REFERENCE.read_text()

    assert [key for key in Policy.model_fields if f"`{key}`" not in text] == []
