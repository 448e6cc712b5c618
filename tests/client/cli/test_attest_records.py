"""What a site has on record of its appraisals, as its administrator reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quorate_client.appraisals.kept import KeptAppraisals, paths_in
from quorate_client.site.folder import SiteFolder

from ..appraisals.kit import RUN, SITE_KEY, STRICT, appraisal
from ..command_kit import Run, runner


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """Two appraisals on record: a machine that was trusted, and one that was refused."""
    folder = SiteFolder(tmp_path)
    kept = KeptAppraisals(folder.attestation)
    for record in (appraisal(), appraisal(300, own_policy=STRICT, code="attestation_key_unknown")):
        kept.keep(record, record.signed(SITE_KEY))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(capsys, monkeypatch, folder)


def test_records_are_listed_and_replayed_line_by_line_with_a_verdict(run: Run) -> None:
    listed, replayed = run("attest", "list"), run("attest", "replay")
    assert (listed.code, replayed.code) == (0, 0)
    for text in (listed.out, replayed.out):
        trusted, refused = (line for line in text.splitlines() if line.startswith("2026-12-01 12:0"))
        assert trusted.split()[3:6] == [RUN, "software", "trusted"]
        assert "refused [attestation_key_unknown]" in refused
        assert "SOFTWARE EVIDENCE" in text
        assert "producing evidence has not been run on hardware" in text
    assert replayed.out.count("as recorded") == 2
    assert "1 trusted, 1 refused: each as it was written down." in replayed.out


def test_one_run_or_one_file_is_replayed_alone(run: Run, folder: SiteFolder) -> None:
    path = paths_in(folder.attestation)[1]
    assert len(run("attest", "replay", "malig", "--json").json()) == 2
    (told,) = run("attest", "replay", path, "--json").json()
    assert (told["stands"], told["trusted"], told["code"]) == (True, False, "attestation_key_unknown")
    assert told["own_policy_digest"] == STRICT.digest().hex()
    assert told["policy_digest"] != told["own_policy_digest"]


def test_a_record_that_was_changed_is_told_and_the_others_are_shown(run: Run, folder: SiteFolder) -> None:
    path = paths_in(folder.attestation)[1]
    path.write_text(path.read_text().replace('"code": "attestation_key_unknown"', '"code": ""'))
    done = run("attest", "replay")
    assert done.code == 3
    assert "CHANGED" in done.out
    assert "does not carry the signature of north" in done.out
    assert done.out.count("as recorded") == 1
    assert "1 of 2 records do not stand" in done.err
    as_json = run("attest", "replay", "--json")
    assert as_json.code == 3
    assert [line["stands"] for line in as_json.json()] == [True, False]
    assert json.loads(as_json.err)["error"]["code"] == "appraisal_record"


def test_a_record_that_the_site_wrote_against_its_evidence_is_told(run: Run, folder: SiteFolder) -> None:
    record = appraisal(600, own_policy=STRICT)
    KeptAppraisals(folder.attestation).keep(record, record.signed(SITE_KEY))
    done = run("attest", "replay")
    assert done.code == 3
    assert "DIFFERS" in done.out
    assert "Expected attestation_key_unknown, as it is found now; got trusted, as it was written down" in done.out


def test_where_nothing_is_on_record_that_is_said(run: Run) -> None:
    done = run("attest", "replay", "another-run")
    assert done.code == 2
    assert "no such record" in done.err
    assert run("attest", "list", "another-run").code == 0


def test_a_record_can_be_explained_as_any_evidence(run: Run, folder: SiteFolder) -> None:
    done = run("attest", "explain", paths_in(folder.attestation)[0])
    assert done.code == 0
    assert "Evidence of the kind software" in done.out
