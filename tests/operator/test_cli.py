from __future__ import annotations

import hashlib
import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate import __version__
from quorate.errors import (
    EXIT_INPUT,
    EXIT_OTHER,
    EXIT_REFUSED,
    EXIT_RUN_NOT_COMPLETED,
    EXIT_UNREACHABLE,
    ContributionError,
    DiskFullError,
    PolicyError,
    QuorateError,
    StudyError,
    TransportError,
    WrongRoleError,
)
from quorate.identity import RunId, SiteName
from quorate.rounds.run import RunState
from quorate.study.task_digest import task_digest
from quorate_operator.cli import main
from tests.operator.conftest import Inside
from tests.operator.test_release import MODEL, handed_out
from tests.server.door import Door, a_study, told

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quorate(door: Door, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUORATE_PROFILE", str(door.state_dir / "operator"))

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


@pytest.fixture
def app_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed Flower app, as far as naming it goes."""
    package = tmp_path / "modules"
    package.mkdir()
    (package / "hospital_app.py").write_text("client = server = None\n")
    monkeypatch.syspath_prepend(package)
    return "hospital_app"


def study_file(folder: Path, module: str, *sites: str) -> Path:
    path = folder / "study.toml"
    path.write_text(
        f"""
name = "malignancy"
purpose = "Tell malignant from benign"
sites = {json.dumps(list(sites))}

[task]
name = "flower:{module}:client"

[guest]
server_app = "{module}:server"

[rounds]
count = 2
quorum = 1

[protection]
mode = "none"
"""
    )
    return path


def a_run(door: Door, inside: Inside) -> str:
    study = a_study(door.enrol("north")[0])
    door.registry.publish(study)
    return str(inside(door.runs.start(study)).run)


def test_an_invitation_is_written_for_its_reader_only_and_never_over_another(
    quorate: Command, door: Door, tmp_path: Path
) -> None:
    code, out, err = quorate("site", "invite", "north", "--days", 2)
    assert (code, err) == (0, "")
    path = tmp_path / "north.invitation.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "quorate-client join north.invitation.json" in out
    assert "(in 1 day)" in out
    content = json.loads(path.read_text())
    assert content["format"] == "quorate.invitation/1"
    assert content["ca_pem"].encode() == door.authority.ca_pem
    assert content["expires_unix_s"] == int(door.clock()) + 2 * 86_400
    code, _, err = quorate("site", "invite", "north")
    assert code == EXIT_INPUT
    assert "not overwritten" in err
    assert json.loads(path.read_text()) == content


def test_a_refused_invitation_leaves_no_file(quorate: Command, door: Door, tmp_path: Path) -> None:
    door.enrol("north")
    code, _, err = quorate("site", "invite", "north", "-o", tmp_path / "north.json")
    assert code == EXIT_INPUT
    assert "quorate site reinvite north" in err
    assert not (tmp_path / "north.json").exists()
    code, out, _ = quorate("site", "reinvite", "north", "-o", tmp_path / "north.json")
    assert code == 0
    assert "quorate-client join --keep-keys north.json" in out


def test_no_key_of_an_invitation_appears_on_the_terminal(quorate: Command, tmp_path: Path) -> None:
    _, out, _ = quorate("site", "invite", "north", "--json")
    assert set(json.loads(out)) == {"site", "path", "address", "expires_unix_s"}
    assert "PRIVATE" not in out


def test_sites_are_listed_and_revoked(quorate: Command, door: Door, inside: Inside) -> None:
    door.enrol("north")
    inside(door.connect("north"))
    code, out, _ = quorate("site", "list")
    assert code == 0
    assert "north" in out
    assert "online" in out
    (site,) = json.loads(quorate("site", "list", "--json")[1])
    assert (site["name"], site["state"]) == ("north", "online")
    assert json.loads(quorate("site", "revoke", "north", "--json")[1])["state"] == "revoked"
    assert quorate("site", "revoke", "unknown")[0] == EXIT_INPUT


def test_a_study_file_is_published_with_what_its_names_stand_for(
    quorate: Command, door: Door, inside: Inside, app_module: str, tmp_path: Path
) -> None:
    keys, _ = door.enrol("north")
    session = inside(door.connect("north"))
    code, out, _ = quorate("study", "publish", study_file(tmp_path, app_module, "north"))
    assert code == 0
    assert "WARNING" in out
    assert "quorate-client show malignancy" in out
    study = door.registry.study("malignancy").study
    assert [site.signing_key for site in study.sites] == [keys.member.signing_key.hex()]
    assert study.task.digest == task_digest(f"flower:{app_module}:client")
    assert told(session) == ["studies_changed"]


TABLE = {
    "kind": "tabular",
    "columns": [{"name": "age", "type": "integer", "range": [0, 120]}],
    "label": {"name": "ill", "classes": ["no", "yes"]},
}


def test_records_are_made_up_from_a_study_file_without_a_credential(
    quorate: Command, app_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUORATE_PROFILE", str(tmp_path / "nowhere"))
    path = study_file(tmp_path, app_module, "north")
    assert "has no schema" in quorate("study", "mock", path)[2]
    text = path.read_text().replace("[guest]", '[task.parameters]\nschema_file = "schema.toml"\n\n[guest]')
    path.write_text(text)
    (tmp_path / "schema.toml").write_text(
        'kind = "tabular"\ncolumns = [{name = "age", type = "integer", range = [0, 120]}]\n'
        'label = {name = "ill", classes = ["no", "yes"]}\n'
    )
    code, out, err = quorate("study", "mock", path, "--rows", 5)
    assert (code, err) == (0, "")
    assert "malignancy.mock.csv: 5 records that are made up" in out
    first, *rows = (tmp_path / "malignancy.mock.csv").read_text().splitlines()
    assert (first, len(rows)) == ("age,ill", 5)
    assert quorate("study", "mock", path)[0] == EXIT_INPUT, "it is not overwritten"
    assert "is a schema and no study" in quorate("study", "mock", tmp_path / "schema.toml")[2]
    assert "There is no folder" in quorate("study", "mock", path, "-o", tmp_path / "none" / "a.mock.csv")[2]


def test_records_are_made_up_from_a_published_study(quorate: Command, door: Door, tmp_path: Path) -> None:
    task = {"name": "tabular-classifier", "digest": "ab" * 32, "parameters": {"schema": TABLE}}
    door.registry.publish(a_study(door.enrol("north")[0], task=task))
    made = json.loads(quorate("study", "mock", "malignancy", "-o", tmp_path / "a.mock.csv", "--seed", 2, "--json")[1])
    assert made == {"path": str(tmp_path / "a.mock.csv"), "rows": 1000, "seed": 2}
    assert len((tmp_path / "a.mock.csv").read_text().splitlines()) == 1001
    assert quorate("study", "mock", "other")[0] == EXIT_INPUT


def test_the_digest_that_a_study_would_name_is_printed_for_others_to_name_it(
    quorate: Command, door: Door, app_module: str, tmp_path: Path
) -> None:
    """Where the other version is installed; there need be no credential."""
    name = f"flower:{app_module}:client"
    assert quorate("study", "digest", name) == (0, task_digest(name) + "\n", "")
    assert quorate("study", "digest", "tabular-classifier")[1].strip() == task_digest("tabular-classifier")
    told = json.loads(quorate("study", "digest", name, "--json")[1])
    content = (tmp_path / "modules" / f"{app_module}.py").read_bytes()
    assert told["files"] == {f"{app_module}.py": hashlib.sha256(content).hexdigest()}
    assert (told["digest"], told["reference"]) == (task_digest(name), f"{app_module}:client")
    code, _, err = quorate("study", "digest", "no-such-task")
    assert (code, "tabular-classifier" in err) == (EXIT_REFUSED, True)


def test_a_study_with_two_versions_of_its_task_is_published_and_shown_with_both(
    quorate: Command, door: Door, app_module: str, tmp_path: Path
) -> None:
    door.enrol("north")
    path = study_file(tmp_path, app_module, "north")
    other = f'[task]\nalso = {{ digest = "{"cd" * 32}", until = 2027-01-31 }}'
    path.write_text(path.read_text().replace("[task]", other))
    code, out, _ = quorate("study", "publish", path)
    assert (code, f"or {'cd' * 6} until 2027-01-31 (UTC)" in out) == (0, True)
    also = door.registry.study("malignancy").study.task.also
    assert also is not None
    assert (also.digest, also.until.isoformat()) == ("cd" * 32, "2027-01-31")


def test_a_study_with_a_site_that_has_not_joined_is_refused_here(
    quorate: Command, door: Door, app_module: str, tmp_path: Path
) -> None:
    door.enrol("north")
    door.enrol("gone")
    door.registry.revoke_site(SiteName("gone"))
    code, _, err = quorate("study", "publish", study_file(tmp_path, app_module, "north", "gone"))
    assert code == EXIT_INPUT
    assert "gone, not enrolled" in err
    code, _, err = quorate("study", "publish", tmp_path / "missing.toml")
    assert code == EXIT_INPUT
    assert "missing.toml" in err
    assert door.registry.studies() == ()


def test_studies_are_listed_and_shown_with_their_warning(quorate: Command, door: Door) -> None:
    keys, _ = door.enrol("north")
    study = a_study(keys)
    door.registry.publish(study)
    for command in (("study", "list"), ("study", "show", "malignancy")):
        code, out, _ = quorate(*command)
        assert code == 0
        assert "WARNING" in out
    shown = json.loads(quorate("study", "show", study.digest().hex()[:8], "--json")[1])
    assert shown["digest"] == study.digest().hex()
    assert quorate("study", "show", "unknown")[0] == EXIT_INPUT


def test_a_run_is_started_paused_resumed_shown_and_stopped(quorate: Command, door: Door) -> None:
    keys, _ = door.enrol("north")
    door.registry.publish(a_study(keys))
    started = json.loads(quorate("run", "start", "malignancy", "--json")[1])
    assert started["state"] == "running"
    for command, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        code, out, _ = quorate("run", command, started["run"][:8], "--json")
        assert (code, json.loads(out)["state"]) == (0, state)
    code, out, _ = quorate("run", "list")
    assert code == 0
    assert "stopped" in out
    assert "WARNING" in out
    assert "WARNING" in quorate("run", "show", started["run"])[1]


def test_who_has_not_approved_is_named_when_a_run_is_started(quorate: Command, door: Door) -> None:
    study = a_study(*(door.enrol(name)[0] for name in ("east", "north", "west")))
    door.registry.publish(study)
    door.registry.record_answer(study.digest(), SiteName("east"), "approved", bytes(64))
    door.registry.record_answer(study.digest(), SiteName("west"), "rejected", bytes(64))
    code, _, err = quorate("run", "start", "malignancy")
    assert code == 0
    assert "until they approve the study: north, west" in err


@pytest.mark.parametrize(("end", "code"), [("complete", 0), ("stop", EXIT_RUN_NOT_COMPLETED)])
def test_a_watch_ends_with_the_run_and_its_exit_code_says_how(
    quorate: Command, door: Door, inside: Inside, end: str, code: int
) -> None:
    run = a_run(door, inside)

    def drive() -> None:
        for _ in range(3 if end == "complete" else 1):
            inside(door.runs.close_round(run, loss=0.5))
        if end == "stop":
            inside(door.runs.stop(run))

    driver = threading.Thread(target=drive)
    driver.start()
    ended, out, _ = quorate("run", "watch", run)
    driver.join()
    assert ended == code
    lines = out.splitlines()
    assert "WARNING" in lines[0]
    assert any("round 1 of 3" in line for line in lines)
    assert lines[-1].endswith("is completed" if end == "complete" else "is stopped")


def test_a_watch_for_programs_ends_with_the_final_view(quorate: Command, door: Door, inside: Inside) -> None:
    run = a_run(door, inside)
    for _ in range(3):
        inside(door.runs.close_round(run, loss=0.5))
    code, out, _ = quorate("run", "watch", run, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["state"] == RunState.COMPLETED


def test_reports_and_models_are_fetched_into_files(
    quorate: Command, door: Door, inside: Inside, tmp_path: Path
) -> None:
    run = a_run(door, inside)
    assert quorate("run", "report", run[:6])[0] == 0
    assert (tmp_path / f"{run}.html").read_text() == f"<p>{run}"
    code, out, _ = quorate("run", "report", run, "--format", "json", "-o", tmp_path / "r.json", "--json")
    assert (code, json.loads(out)) == (0, {"path": str(tmp_path / "r.json"), "bytes": 2})
    assert quorate("run", "report", run, "--format", "pdf")[0] == EXIT_INPUT
    code, _, err = quorate("model", "fetch", run)
    assert code == EXIT_INPUT
    assert "no released model" in err
    assert not (tmp_path / "model.npz").exists()
    door.runs.model_path = tmp_path / "released"
    door.runs.model_path.write_bytes(b"weights")
    code, out, err = quorate("model", "fetch", run)
    assert (code, out) == (0, "Wrote model.npz, 7 bytes.\n")
    assert "WARNING: no site signed it" in err
    assert (tmp_path / "model.npz").read_bytes() == b"weights"
    assert json.loads(quorate("model", "fetch", run, "--json")[1])["signed_by"] == []


SEALED = """
name = "malignancy"
purpose = "Tell malignant from benign"
sites = ["east", "north", "south"]
[task]
name = "tabular-classifier"
[rounds]
count = 2
quorum = 3
[release]
model = "operator"
"""


def test_a_model_that_is_sealed_to_this_operator_is_opened_and_to_no_other(
    quorate: Command, door: Door, inside: Inside, tmp_path: Path
) -> None:
    """The key is made with the first study that needs one, and stays."""
    sites = tuple(door.enrol(name)[0] for name in ("east", "north", "south"))
    profile, file = door.state_dir / "operator", tmp_path / "study.toml"
    file.write_text(SEALED)
    assert not (profile / "release.key").exists()
    code, out, err = quorate("study", "publish", file)
    assert code == 0
    assert "keep a copy" in err
    file.write_text(SEALED.replace("malignancy", "another"))
    assert quorate("study", "publish", file)[2] == ""
    study, other = (door.registry.study(name).study for name in ("malignancy", "another"))
    assert study.release.operator_key == other.release.operator_key
    assert study.release.operator_fingerprint in out
    run = str(inside(door.runs.start(study)).run)
    door.runs.model_path = tmp_path / "released"
    door.runs.model_path.write_bytes(handed_out(study, sites, RunId(run)))
    code, out, err = quorate("model", "fetch", run[:12])
    assert (code, err) == (0, "")
    assert f"Signed by east, north, south as the model of {run}" in out
    assert (tmp_path / "model.npz").read_bytes() == MODEL
    told = json.loads(quorate("model", "fetch", run, "--json")[1])
    assert (told["signed_by"], told["study"]) == (["east", "north", "south"], study.digest().hex())

    door.runs.model_path.write_bytes(handed_out(study, sites[:2], RunId(run)))
    code, _, err = quorate("model", "fetch", run, "-o", tmp_path / "forged.npz")
    assert code == EXIT_REFUSED
    assert "Distrust the server" in err
    (profile / "release.key").rename(tmp_path / "release.key")
    code, _, err = quorate("model", "fetch", run, "-o", tmp_path / "forged.npz")
    assert code == EXIT_INPUT
    assert "release.key is not there" in err
    assert list(tmp_path.glob("forged*")) == []


def test_a_refusal_is_one_message_on_standard_error_and_an_exit_code(quorate: Command, door: Door) -> None:
    door.registry.revoke_operator("operator")
    code, out, err = quorate("site", "list")
    assert (code, out) == (EXIT_REFUSED, "")
    assert err.startswith("quorate: The certificate of operator does not count")
    assert err.count("\n") == 1
    code, out, err = quorate("site", "list", "--json")
    assert (code, out) == (EXIT_REFUSED, "")
    assert json.loads(err)["error"]["code"] == "certificate_revoked"


def test_a_server_that_is_not_there_and_a_credential_that_is_not_there_are_told_apart(
    quorate: Command, door: Door, tmp_path: Path
) -> None:
    profile = door.state_dir / "operator" / "profile.json"
    profile.write_text(profile.read_text().replace(f":{door.port}", ":1"))
    assert quorate("site", "list")[0] == EXIT_UNREACHABLE
    code, _, err = quorate("--profile", tmp_path / "nowhere", "site", "list")
    assert code == EXIT_INPUT
    assert "nowhere" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StudyError("x"), EXIT_INPUT),
        (WrongRoleError("x"), EXIT_REFUSED),
        (PolicyError("x"), EXIT_REFUSED),
        (TransportError("x"), EXIT_UNREACHABLE),
        (ContributionError("x"), EXIT_RUN_NOT_COMPLETED),
        (DiskFullError("x"), EXIT_OTHER),
        (QuorateError("x"), EXIT_OTHER),
    ],
)
def test_exit_codes_follow_who_must_act(error: QuorateError, code: int) -> None:
    assert error.exit_code == code


def test_the_version_is_told_without_a_credential(quorate: Command) -> None:
    assert quorate("--version")[:2] == (0, f"quorate {__version__}\n")
