"""The commands about the privacy ledger, as a shell runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quorate.identity import SiteName, fingerprint
from quorate.privacy.events import Event
from quorate_client.ledger.entries import Account, Limits
from quorate_client.ledger.ledger import open_ledger
from quorate_client.site.database import make_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import Identity, make_or_load_keys, save_identity

from ..command_kit import Run, runner
from ..ledger_kit import ACCOUNTANTS, DELTA, NOW, Clock, a_charge

EVENT = Event(1.1, 0.05, 20)
HALF = Event(1.1, 0.05, 10)
LIMITS = Limits(DELTA)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, site: SiteFolder) -> Run:
    """Run a command on the test's folder."""
    return runner(capsys, monkeypatch, site)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    folder = SiteFolder(tmp_path / "site")
    folder.create()
    make_or_load_keys(folder.keys)
    make_state(folder.database)
    save_identity(folder.keys, Identity("testers", SiteName("north"), "localhost:1"), b"", b"")
    folder.policy.write_text("[privacy]\nepsilon_per_run = 5.0\nepsilon_ever = 9.0\n")
    return folder


@pytest.fixture
def spent(site: SiteFolder) -> SiteFolder:
    """Two runs on one data set, one of which was cut off, one round on another, a statement for the whole site."""
    ledger = open_ledger(site.ledger, site.database, make_or_load_keys(site.keys).signing, ACCOUNTANTS, Clock())
    for number in (1, 2):
        ledger.spend(ledger.reserve(a_charge(number, events=[EVENT]), LIMITS, NOW), [HALF])
    ledger.reserve(a_charge(1, run="run-2", events=[EVENT]), LIMITS, NOW)
    ledger.reserve(a_charge(1, account=Account("visits", "site"), events=[Event(3.0)]), LIMITS, NOW)
    ledger.reserve(a_charge(1, account=Account("scans", "record"), events=[EVENT]), LIMITS, NOW)
    ledger.refuse(bytes(32), "run-3", 1, "policy_refused")
    ledger.close()
    return site


def public_key(site: SiteFolder) -> bytes:
    return make_or_load_keys(site.keys).signing.public_key().public_bytes_raw()


def test_a_site_that_spent_nothing_says_so(run: Run) -> None:
    result = run("ledger", "show")
    assert (result.code, result.out.strip()) == (0, "Nothing was spent yet.")
    assert run("ledger", "show", "--json").json() == {"accounts": [], "unbounded_anywhere": []}
    assert run("ledger", "verify", "--json").json() == {"entries": 0, "newest": ""}


def test_a_folder_that_is_no_site_s_is_told_so(run: Run, site: SiteFolder) -> None:
    (site.keys / "identity.json").unlink()
    for arguments in (("show",), ("verify",), ("export", "file")):
        assert "wrong_state" in run("ledger", *arguments).err


def test_what_was_spent_is_shown_by_run_with_what_is_left(run: Run, spent: SiteFolder) -> None:
    from quorate.privacy.accounting import adaptive_epsilon, epsilon

    scans, per_record, per_site = run("ledger", "show", "--json").json()["accounts"]

    assert [each["dataset"] for each in (scans, per_record, per_site)] == ["scans", "visits", "visits"]
    first, second = per_record["runs"]
    assert (first["run"], first["study"], first["rounds"], first["unsettled"]) == ("run-1", "hearts", 2, 0)
    assert (second["run"], second["rounds"], second["unsettled"]) == ("run-2", 1, 1)
    assert first["epsilon"] == pytest.approx(epsilon([HALF, HALF], DELTA))
    in_all = adaptive_epsilon([HALF, HALF, EVENT], DELTA)
    assert per_record["epsilon_ever"] == pytest.approx(in_all)
    assert per_record["left_ever"] == pytest.approx(9 - in_all)
    assert (per_record["left_this_year"], per_site["left_ever"]) == (None, None)  # no limit
    assert (per_site["unit"], per_site["epsilon_ever"]) == (
        "site",
        pytest.approx(adaptive_epsilon([Event(3.0)], DELTA)),
    )


def test_records_that_were_released_without_a_bound_have_no_epsilon(run: Run, spent: SiteFolder) -> None:
    """An epsilon of 3 was shown for records that another study had used without any noise."""
    ledger = open_ledger(spent.ledger, spent.database, make_or_load_keys(spent.keys).signing, ACCOUNTANTS, Clock())
    ledger.record_unbounded(Account("visits", "record"), "plain", b"p" * 32, "run-9")
    ledger.close()
    scans, per_record, _ = run("ledger", "show", "--json").json()["accounts"]
    assert (per_record["epsilon_ever"], per_record["epsilon_last_year"], per_record["left_ever"]) == (None, None, 0.0)
    assert [(each["study"], each["run"]) for each in per_record["unbounded"]] == [("plain", "run-9")]
    assert (scans["unbounded"], scans["epsilon_ever"] is None) == ([], False)
    assert run("ledger", "show", "visits").out.count("without bound") == 3  # the run, the year, in all
    spent.policy.write_text('[privacy]\nepsilon_ever = 9.0\nunbounded = "set_aside"\n')
    per_record = run("ledger", "show", "visits", "--json").json()["accounts"][0]
    assert (per_record["epsilon_ever"], per_record["left_ever"] > 0) == (None, True)


def test_a_guest_app_s_run_is_shown_beside_all_data_sets(run: Run, site: SiteFolder) -> None:
    ledger = open_ledger(site.ledger, site.database, make_or_load_keys(site.keys).signing, ACCOUNTANTS, Clock())
    ledger.record_unbounded(None, "app", b"a" * 32, "run-9")
    ledger.close()
    result = run("ledger", "show")
    assert "run-9 of the guest app study app may have released any records" in result.err
    assert [each["run"] for each in run("ledger", "show", "--json").json()["unbounded_anywhere"]] == ["run-9"]


def test_the_test_part_of_a_data_set_is_shown_beside_its_training_part(run: Run, spent: SiteFolder) -> None:
    """Whoever asked for the data set by its name was not told of it."""
    ledger = open_ledger(spent.ledger, spent.database, make_or_load_keys(spent.keys).signing, ACCOUNTANTS, Clock())
    ledger.reserve(a_charge(1, account=Account("visits", "record", "test"), events=[EVENT]), LIMITS, NOW)
    ledger.close()
    shown = run("ledger", "show", "visits", "--json").json()["accounts"]
    assert [(each["unit"], each["part"]) for each in shown] == [
        ("record", "training"), ("site", "training"), ("record", "test")
    ]  # fmt: skip
    assert "visits, test part, per record, at delta 1e-05" in run("ledger", "show", "visits").out
    assert run("ledger", "verify").code == 0


def test_people_see_tables(run: Run, spent: SiteFolder) -> None:
    out = run("ledger", "show", "visits").out
    assert "visits, per record, at delta 1e-05" in out
    assert "visits, per site" in out
    assert "scans" not in out
    assert "run-2" in out
    assert "no limit" in out


def test_a_data_set_of_which_nothing_is_known_is_a_mistake_of_input(run: Run, spent: SiteFolder) -> None:
    result = run("ledger", "show", "nobody", "--json")
    assert (result.code, json.loads(result.err)["error"]["code"]) == (2, "not_found")


def test_an_older_ledger_is_shown_with_a_warning_and_does_not_verify(run: Run, spent: SiteFolder) -> None:
    spent.ledger.unlink()
    result = run("ledger", "show")
    assert result.code == 0
    assert "not what it was seen to be" in result.err
    assert run("ledger", "verify").code == 3


def test_the_site_verifies_its_own_ledger(run: Run, spent: SiteFolder) -> None:
    result = run("ledger", "verify", "--json").json()
    assert result["entries"] == 8
    assert len(result["newest"]) == 64


@pytest.mark.parametrize("how", ["key", "fingerprint"])
def test_an_auditor_verifies_an_export_without_the_site_s_folder(
    run: Run, spent: SiteFolder, tmp_path: Path, how: str
) -> None:
    file, key = tmp_path / "ledger.jsonl", public_key(spent)
    assert run("ledger", "export", file, "--json").json()["fingerprint"] == fingerprint(key)
    newest = run("ledger", "verify", "--json").json()["newest"]
    spent.root.rename(tmp_path / "elsewhere")
    given = key.hex() if how == "key" else fingerprint(key)
    result = run("ledger", "verify", file, "--key", given, "--json")

    assert result.json() == {"entries": 8, "newest": newest}
    assert not spent.root.exists()


def test_an_export_is_verified_with_the_site_s_own_key(run: Run, spent: SiteFolder, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    run("ledger", "export", file)
    assert "All 8 entries are in order" in run("ledger", "verify", file).out


def test_an_export_does_not_vouch_for_its_own_key(run: Run, spent: SiteFolder, tmp_path: Path) -> None:
    """Whoever makes up a ledger names a key of theirs in it."""
    file = tmp_path / "ledger.jsonl"
    run("ledger", "export", file)
    other = bytes(range(32))
    assert "Entry 1 " in run("ledger", "verify", file, "--key", other.hex()).err
    result = run("ledger", "verify", file, "--key", fingerprint(other))
    assert (result.code, "key_mismatch" in result.err) == (3, True)
    # Both keys of a site that joined anew.
    assert run("ledger", "verify", file, "--key", other.hex(), "--key", public_key(spent).hex()).code == 0


@pytest.mark.parametrize("change", ["count", "left out", "swapped"])
def test_an_export_that_was_changed_is_refused_naming_the_entry(
    run: Run, spent: SiteFolder, tmp_path: Path, change: str
) -> None:
    file = tmp_path / "ledger.jsonl"
    run("ledger", "export", file)
    lines = file.read_text().splitlines()
    match change:
        case "count":
            lines[2] = lines[2].replace('"count": 10', '"count": 1')
        case "left out":
            del lines[2]
        case "swapped":
            lines[2], lines[3] = lines[3], lines[2]
    file.write_text("\n".join(lines) + "\n")
    result = run("ledger", "verify", file)
    assert result.code == 3
    assert "Entry 2 " in result.err


@pytest.mark.parametrize("content", ["", "{}", "[]", "not JSON", '{"format": "quorate.ledger/2", "signing_key": ""}'])
def test_a_file_that_is_no_export_is_a_mistake_of_input(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    for file in (tmp_path / "file", tmp_path / "none"):
        result = run("ledger", "verify", file)
        assert (result.code, "bad_input" in result.err) == (2, True)


def test_a_malformed_key_is_a_mistake_of_input(run: Run, spent: SiteFolder, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    run("ledger", "export", file)
    assert run("ledger", "verify", file, "--key", "abc").code == 2
    assert run("ledger", "verify", "--key", fingerprint(public_key(spent))).code == 2  # of no file


def test_an_export_overwrites_nothing(run: Run, spent: SiteFolder, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    file.write_text("mine")
    result = run("ledger", "export", file)
    assert (result.code, "already_exists" in result.err, file.read_text()) == (2, True, "mine")
