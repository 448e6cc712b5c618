"""The administrator's commands, as a shell runs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import (
    CertificateRevokedError,
    ConfigError,
    DiskFullError,
    IdentityClonedError,
    IdentityError,
    PolicyError,
    QuorateError,
    ServerUnreachableError,
    SupersededError,
    WrongStateError,
)
from quorate.study.attestation_section import Attestation
from quorate.study.study import OtherVersion, Protection, Release, Study, TaskRef
from quorate.study.task_digest import task_digest
from quorate_client.approval.answers import Answers
from quorate_client.cli import exit_code
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_identity, load_keys, make_or_load_keys

from ..command_kit import Run, runner
from ..conftest import APP, POLICY, SITE, make_study, write_invitation
from ..consortium import Authority, Server

SCHEMA = """
kind = "tabular"
[[columns]]
name = "age"
type = "integer"
range = [0.0, 120.0]
[label]
name = "ill"
classes = ["no", "yes"]
"""
TABULAR = "tabular-classifier"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the test's folder."""
    return runner(capsys, monkeypatch, folder)


@pytest.fixture
def dataset(tmp_path: Path, run: Run) -> str:
    """A small registered data set; the site must have joined before."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    rows = "".join(f"{20 + i},{'yes' if i % 3 else 'no'}\n" for i in range(40))
    (tmp_path / "records.csv").write_text("age,ill\n" + rows)
    assert run("data", "add", "visits", tmp_path / "records.csv", "--schema", tmp_path / "schema.toml").code == 0
    return "visits"


@dataclass
class Admin:
    """The commands of a site that has joined, and the server from which studies come."""

    run: Run
    folder: SiteFolder
    services: Server

    def study(self, **changes: Any) -> Study:
        return make_study(self.services, **changes)

    def offer(self, **changes: Any) -> Study:
        self.services.studies.append(self.study(**changes))
        return self.services.studies[-1]

    def offer_tabular(self, **parameters: Any) -> Study:
        """A study of the data set's records."""
        schema = {
            "kind": "tabular",
            "columns": [{"name": "age", "type": "integer", "range": [0.0, 120.0]}],
            "label": {"name": "ill", "classes": ["no", "yes"]},
        }
        task = TaskRef(name=TABULAR, digest=task_digest(TABULAR), parameters={"schema": schema} | parameters)
        return self.offer(task=task, guest=None)


@pytest.fixture
def admin(run: Run, joined: SiteFolder, services: Server) -> Admin:
    return Admin(run, joined, services)


# --- joining ---


def test_joining_shows_the_fingerprint_and_leaves_a_policy_to_read(
    run: Run, authority: Authority, address: str, tmp_path: Path, folder: SiteFolder
) -> None:
    file = write_invitation(tmp_path / "invitation.json", authority.invitation(SITE, address))
    result = run("join", file)

    assert result.code == 0
    assert load_keys(folder.keys).member(SITE).fingerprint in result.out
    assert folder.policy.read_text().startswith("# What this site lets happen")


def test_joining_in_json(run: Run, authority: Authority, address: str, tmp_path: Path, folder: SiteFolder) -> None:
    file = write_invitation(tmp_path / "invitation.json", authority.invitation(SITE, address))
    fields = run("join", file, "--json").json()

    assert (fields["site"], fields["consortium"], fields["address"]) == (SITE, "testers", address)
    assert fields["fingerprint"] == load_keys(folder.keys).member(SITE).fingerprint


def test_joining_with_another_authority_than_the_one_given_is_refused(
    run: Run, authority: Authority, address: str, tmp_path: Path, services: Server
) -> None:
    file = write_invitation(tmp_path / "invitation.json", authority.invitation(SITE, address))
    (tmp_path / "ca.pem").write_bytes(Authority().pem)
    result = run("join", file, "--ca", tmp_path / "ca.pem")

    assert result.code == 3
    assert "server_identity" in result.err
    assert services.redeemed == {}


def test_joining_with_something_that_is_no_invitation_is_a_mistake_of_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "invitation.json").write_text("{}")
    result = run("join", tmp_path / "invitation.json", "--json")

    assert result.code == 2
    error = json.loads(result.err)["error"]
    assert error["code"] == "bad_input"
    assert error["expected"]
    assert error["action"]


def test_joining_while_the_server_is_away_can_be_tried_again(run: Run, authority: Authority, tmp_path: Path) -> None:
    file = write_invitation(tmp_path / "invitation.json", authority.invitation(SITE, "127.0.0.1:1"))

    assert run("join", file).code == 4


def test_a_proxy_given_at_joining_is_kept_for_the_daemon(
    run: Run, authority: Authority, tmp_path: Path, folder: SiteFolder
) -> None:
    file = write_invitation(tmp_path / "invitation.json", authority.invitation(SITE, "127.0.0.1:1"))
    assert run("join", file, "--proxy", "socks5://proxy").code == 2
    folder.create()
    folder.config.write_text('proxy = "http://other:1"\n')
    result = run("join", file, "--proxy", "http://proxy:3128")

    assert result.code == 2
    assert "another proxy" in result.err


# --- studies ---


def test_an_offered_study_is_listed_with_a_warning_when_it_is_unprotected(admin: Admin) -> None:
    admin.offer()
    result = admin.run("studies")

    assert result.code == 0
    assert "hearts" in result.out
    assert "can be approved" in result.out
    assert "WARNING: none" in result.out
    assert "can read every update" in result.err


def test_studies_in_json_say_what_is_against_each(admin: Admin) -> None:
    admin.folder.policy.write_text(POLICY.replace('"operator", ', ""))
    admin.offer(name="leaky", release=Release(model="operator"))
    (study,) = admin.run("studies", "--json").json()

    assert (study["name"], study["answer"], study["may_be_approved"]) == ("leaky", None, False)
    assert [refusal["code"] for refusal in study["refusals"]] == ["policy_refused"]
    assert study["warnings"]


def test_everything_that_matters_is_shown_before_approval(admin: Admin) -> None:
    study = admin.offer()
    result = admin.run("show", "hearts")

    assert result.code == 0
    for text in (
        study.purpose,
        study.digest().hex(),
        APP,
        "the installed one",
        "json:JSONEncoder",
        "for the sites and the operator",  # a guest app keeps its model at the server
        *(site.fingerprint for site in study.sites),
    ):
        assert text in result.out
    assert "can read every update" in result.err


def test_what_an_evaluation_without_protection_tells_is_shown_before_approval(admin: Admin) -> None:
    task = TaskRef(name="tabular-classifier", digest=task_digest("tabular-classifier"))
    admin.offer(task=task, guest=None)
    result = admin.run("show", "hearts")

    assert "What the evaluation tells:" in result.out
    assert "After each round every site tries the model" in result.out
    assert "can make up the models that are tried" in result.err
    assert any(
        "choose the models" in sentence for sentence in admin.run("show", "hearts", "--json").json()["evaluation"]
    )


def test_what_secure_aggregation_leaves_open_is_shown_before_approval(admin: Admin) -> None:
    task = TaskRef(name="tabular-classifier", digest=task_digest("tabular-classifier"))
    for mode, is_shown in (("secagg", True), ("none", False)):
        name = f"hearts-{mode}"
        protection = Protection(mode=mode, colluders=0)
        admin.offer(name=name, task=task, guest=None, protection=protection)
        assert ("the difference of the two sums" in admin.run("show", name).out.replace("\n", " ")) == is_shown


def test_which_machines_may_add_is_shown_before_approval_and_held_against_the_sites_own(admin: Admin) -> None:
    task = TaskRef(name="tabular-classifier", digest=task_digest("tabular-classifier"))
    software = {"environment": "development", "software": {"keys": ["11" * 32]}}
    attestation = Attestation.model_validate({"required": True, "policy": software})
    study = admin.offer(task=task, guest=None, protection=Protection(colluders=0), attestation=attestation)
    shown = admin.run("show", study.name)
    assert "added by an attested machine (software)" in shown.out
    assert "software: key 1111" in shown.out
    assert "SOFTWARE EVIDENCE: for development" in shown.out
    told = admin.run("show", study.name, "--json").json()["attestation"]
    assert told["policy_digest"] == attestation.policy.digest().hex()
    (admin.folder.root / "own.toml").write_text("[nitro]\nallow = []\n")
    with admin.folder.policy.open("a") as file:
        file.write('\n[attestation]\nfile = "own.toml"\n')
    checked = admin.run("policy", "check", study.name)
    assert checked.code == 3
    assert "The study accepts evidence of: software." in checked.out
    assert "This site's own.toml accepts evidence of: nitro." in checked.out
    assert "No kind of evidence meets both" in checked.out


def test_the_fingerprint_of_the_key_to_which_the_model_is_sealed_is_shown_before_approval(admin: Admin) -> None:
    """A server could have put a key of its own in the place of the operator's."""
    release = Release(model="operator", operator_key="ab" * 32)
    task = TaskRef(name="tabular-classifier", digest="ab" * 32)
    secret = admin.study(task=task, guest=None, protection=Protection(), release=release)
    admin.services.studies.append(secret)
    assert secret.release.operator_fingerprint
    assert f"sealed to    {secret.release.operator_fingerprint}" in admin.run("show", "hearts").out
    assert admin.run("studies", "--json").json()[0]["release_key"] == secret.release.operator_fingerprint


def test_the_operators_mark_is_no_difference_between_studies_and_its_key_is(admin: Admin) -> None:
    task = TaskRef(name="tabular-classifier", digest="ab" * 32)
    for name, key in (("hearts", "ab"), ("hearts-2", "cd")):
        release = Release(model="operator", operator_key=key * 32, operator_mark=key * 32)
        changes = {"task": task, "guest": None, "protection": Protection(), "release": release}
        admin.offer(name=name, **changes)
    told = {change["key"] for change in admin.run("diff", "hearts", "hearts-2", "--json").json()}
    assert told == {"name", "release.operator_key"}


def test_what_looks_like_markup_in_a_study_is_shown_as_it_stands(admin: Admin) -> None:
    admin.offer(purpose="[red]help[/red] :warning:")

    assert "[red]help[/red] :warning:" in admin.run("show", "hearts").out


def test_an_approval_is_signed_told_and_pinned(admin: Admin) -> None:
    study = admin.offer()
    result = admin.run("approve", "hearts", "--node-config", "partition=3", "--node-config", "label=a=b", "--json")

    assert result.code == 0
    assert admin.services.answers == [(study.digest(), "approved")]
    with site_state(admin.folder.database) as state:
        answers = Answers(state, lambda: 0.0)
        agreement = answers.agreement(study.digest(), SITE)
        pinned = answers.find(study.digest())
    assert agreement.node_config == {"partition": 3, "label": "a=b"}
    assert pinned is not None
    assert pinned.members == tuple(admin.services.members[name] for name in study.site_names)


def test_a_study_is_approved_on_a_data_set_that_fits(admin: Admin, dataset: str) -> None:
    study = admin.offer_tabular()

    result = admin.run("approve", study.digest().hex()[:8], "--dataset", dataset)
    assert result.code == 0
    assert "can make up the models that are tried" in result.err
    with site_state(admin.folder.database) as state:
        agreement = Answers(state, lambda: 0.0).agreement(study.digest(), SITE)
    assert agreement.dataset is not None
    assert agreement.dataset.records == 40


def test_a_data_set_that_does_not_fit_is_refused(admin: Admin, dataset: str) -> None:
    schema = {
        "kind": "tabular",
        "columns": [{"name": "weight", "type": "number", "range": [0.0, 300.0]}],
        "label": {"name": "ill", "classes": ["no", "yes"]},
    }
    admin.offer_tabular(schema=schema)
    result = admin.run("approve", "hearts", "--dataset", dataset)

    assert result.code == 2
    assert "weight" in result.err
    assert admin.services.answers == []


def test_a_study_needs_a_data_set(admin: Admin) -> None:
    admin.offer_tabular()

    assert "Register one with `quorate-client data add`" in admin.run("approve", "hearts").err
    assert admin.run("approve", "hearts", "--dataset", "nothing").code == 2


def test_a_study_that_the_policy_refuses_cannot_be_approved(admin: Admin) -> None:
    admin.offer()
    admin.folder.policy.write_text(POLICY.replace('"none"', '"secagg"'))
    result = admin.run("approve", "hearts")

    assert result.code == 3
    assert "protection_refused" in result.err
    assert admin.services.answers == []


def test_a_study_with_another_key_for_this_site_cannot_be_approved(admin: Admin, tmp_path: Path) -> None:
    (tmp_path / "impostor").mkdir()
    admin.services.members[SITE] = make_or_load_keys(tmp_path / "impostor").member(SITE)
    admin.offer()
    result = admin.run("approve", "hearts")

    assert result.code == 3
    assert "key_mismatch" in result.err
    assert admin.services.answers == []


def test_a_study_of_another_consortium_cannot_be_approved(admin: Admin) -> None:
    admin.offer(consortium="strangers")

    assert "another consortium" in admin.run("approve", "hearts").err


def test_a_study_without_this_site_cannot_be_approved(admin: Admin) -> None:
    study = admin.study()
    admin.offer(sites=[s for s in study.sites if s.name != SITE])

    assert "exactly once" in admin.run("approve", "hearts").err


def test_a_task_of_another_version_cannot_be_approved(admin: Admin) -> None:
    admin.offer(task=TaskRef(name=APP, digest="0" * 64))

    assert "NOT the installed one" in admin.run("show", "hearts").out
    result = admin.run("approve", "hearts")
    assert (result.code, "task_mismatch" in result.err) == (3, True)


@pytest.mark.parametrize("runs", ["the version of the study", "the other one"])
def test_both_versions_of_a_task_and_the_last_day_are_shown_before_approval_and_with_it(
    admin: Admin, runs: str
) -> None:
    digests = [task_digest(APP), "0" * 64]
    if runs == "the other one":
        digests.reverse()
    task = TaskRef(name=APP, digest=digests[0], also=OtherVersion(digest=digests[1], until=date(9999, 1, 31)))
    admin.offer(task=task)
    both = [{"digest": digests[0], "until": None}, {"digest": digests[1], "until": "9999-01-31"}]

    shown = " ".join(admin.run("show", "hearts").out.split())
    assert f"{task_digest(APP)[:16]}…: the installed one" in shown
    assert f"{'0' * 16}…: another one is installed" in shown
    assert f"or, until 9999-01-31 (UTC) {digests[1][:16]}…" in shown
    (study,) = admin.run("studies", "--json").json()
    assert (study["task_digests"], study["task_is_installed"]) == (both, True)
    approved = admin.run("approve", "hearts")
    assert approved.code == 0
    assert f"or, until 9999-01-31 (UTC): {digests[1][:16]}…" in approved.out


def test_a_version_whose_last_day_is_over_cannot_be_approved(admin: Admin) -> None:
    """Whoever publishes a study chooses the day."""
    other = OtherVersion(digest=task_digest(APP), until=date(2001, 1, 31))
    admin.offer(task=TaskRef(name=APP, digest="0" * 64, also=other))

    assert admin.run("show", "hearts").out.count("NOT the installed one") == 2
    result = admin.run("approve", "hearts")
    assert (result.code, admin.services.answers) == (3, [])
    assert "task_mismatch" in result.err
    assert "accepted until 2001-01-31 (UTC)" in " ".join(result.err.split())


def test_keys_that_the_server_swapped_in_the_roster_are_noticed(admin: Admin, tmp_path: Path) -> None:
    admin.offer()
    (tmp_path / "swapped").mkdir()
    member = admin.services.members["east"]
    admin.services.members["east"] = make_or_load_keys(tmp_path / "swapped").member(member.name)
    assert "distrust" in admin.run("studies").err
    result = admin.run("approve", "hearts")

    assert result.code == 3
    assert "distrust" in result.err
    assert admin.services.answers == []


def test_a_member_that_comes_with_a_new_key_is_marked(admin: Admin, tmp_path: Path) -> None:
    admin.offer()
    assert admin.run("approve", "hearts").code == 0
    (tmp_path / "again").mkdir()
    admin.services.members["east"] = make_or_load_keys(tmp_path / "again").member(admin.services.members["east"].name)
    admin.services.studies[:] = [admin.study(name="lungs")]

    assert admin.run("show", "lungs", "--json").json()["new_keys"] == ["east"]
    assert "another key than" in admin.run("show", "lungs").out


def test_an_approval_that_the_server_refuses_does_not_count(admin: Admin) -> None:
    study = admin.offer()
    admin.services.faults.answers_refused = WrongStateError("The study was withdrawn")

    assert admin.run("approve", "hearts").code == 2
    with site_state(admin.folder.database) as state:
        assert Answers(state, lambda: 0.0).find(study.digest()) is None


def test_a_rejection_counts_here_even_if_the_server_cannot_be_told(admin: Admin) -> None:
    admin.offer()
    assert admin.run("approve", "hearts").code == 0
    admin.services.faults.answers_refused = WrongStateError("The server is being restored")

    assert admin.run("reject", "hearts").code == 2
    assert admin.run("status", "--json").json()["studies"][0]["answer"] == "rejected"


def test_rejecting_tells_the_server(admin: Admin) -> None:
    study = admin.offer()

    assert admin.run("reject", "hearts").code == 0
    assert admin.services.answers == [(study.digest(), "rejected")]


def test_a_study_that_is_not_offered_or_not_meant_alone_is_a_mistake_of_input(admin: Admin) -> None:
    admin.services.studies += [admin.study(), admin.study(seed=1)]

    assert admin.run("show", "lungs").code == 2
    assert "more digits" in admin.run("show", "hearts").err


def test_settings_of_an_app_must_be_pairs(run: Run, joined: SiteFolder) -> None:
    assert run("approve", "hearts", "--node-config", "partition").code == 2


# --- data ---


def test_data_sets_are_listed_shown_and_removed(run: Run, joined: SiteFolder, dataset: str) -> None:
    (listed,) = run("data", "list", "--json").json()
    assert (listed["name"], listed["records"], listed["test_fraction"]) == (dataset, 40, 0.2)
    assert dataset in run("data", "list").out
    assert '"age"' in run("data", "show", dataset).out
    assert run("data", "remove", dataset).code == 0
    assert run("data", "list", "--json").json() == []
    assert run("data", "show", dataset).code == 2


def test_a_data_set_is_not_registered_twice(run: Run, joined: SiteFolder, dataset: str, tmp_path: Path) -> None:
    result = run("data", "add", dataset, tmp_path / "records.csv", "--schema", tmp_path / "schema.toml")

    assert result.code == 2
    assert "already_exists" in result.err


def test_records_that_do_not_fit_are_named_by_number_and_not_shown(
    run: Run, joined: SiteFolder, tmp_path: Path
) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "records.csv").write_text("age,ill\n" + "30,no\n40,yes\n" * 20 + "4711,no\n")
    result = run("data", "add", "visits", tmp_path / "records.csv", "--schema", tmp_path / "schema.toml")

    assert result.code == 2
    assert "4711" not in result.err


# --- the site itself ---


def test_status_tells_who_where_and_what(admin: Admin, address: str) -> None:
    admin.offer()
    admin.run("approve", "hearts")
    facts = admin.run("status", "--json").json()

    assert (facts["site"], facts["address"], facts["daemon_runs"], facts["paused"]) == (SITE, address, False, False)
    assert facts["certificate_days_left"] == pytest.approx(1, abs=0.01)
    assert facts["connection"] is None
    assert [study["name"] for study in facts["studies"]] == ["hearts"]
    text = admin.run("status").out
    assert "not running" in text
    assert "can read updates" in text


def test_a_pause_is_stored_for_the_daemon(run: Run, joined: SiteFolder) -> None:
    assert run("pause").code == 0
    with site_state(joined.database) as state:
        assert state.paused
    assert run("resume", "--json").json()["paused"] is False
    with site_state(joined.database) as state:
        assert not state.paused


@pytest.mark.parametrize(
    "command", [("status",), ("studies",), ("run",), ("pause",), ("data", "list"), ("approve", "hearts")]
)
def test_a_site_that_has_not_joined_is_told_how_and_nothing_is_made(
    run: Run, folder: SiteFolder, command: tuple[str, ...]
) -> None:
    result = run(*command)

    assert result.code == 2
    assert "quorate-client join FILE" in result.err
    assert not folder.root.exists()


def test_a_wrong_configuration_stops_the_daemon(run: Run, joined: SiteFolder) -> None:
    joined.config.write_text("colour = 1\n")
    result = run("run")

    assert result.code == 2
    assert "colour: unknown key" in result.err


def test_a_server_that_is_away_is_exit_code_four(run: Run, joined: SiteFolder) -> None:
    joined.config.write_text('address = "127.0.0.1:1"\n')

    assert run("studies").code == 4


def test_another_server_at_the_address_is_exit_code_three(run: Run, joined: SiteFolder, authority: Authority) -> None:
    (joined.keys / "ca.pem").write_bytes(Authority().pem)

    assert run("studies").code == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (IdentityError("x"), 3),
        (PolicyError("x"), 3),
        (ServerUnreachableError("x"), 4),
        (DiskFullError("x"), 1),
        (SupersededError("x"), 10),
        (IdentityClonedError("x"), 11),
        (CertificateRevokedError("x"), 12),
    ],
)
def test_exit_codes_are_as_documented(error: QuorateError, code: int) -> None:
    assert exit_code(error) == code


def test_the_site_is_who_its_certificate_says(joined: SiteFolder) -> None:
    assert load_identity(joined.keys).site == SITE
