"""The test of the first machine with the hardware, on machines that stand in for it, and where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.attestation.hardware_smoke import main, naming, smoke
from quorate.attestation.evidence import Evidence
from quorate.attestation.evidence_file import read_evidence_file
from tests.protos.attestation.authorities import BINDING, NOW, Amd, Google
from tests.protos.attestation.samples import SPACE, TDX, Sample


class Machine:
    """Shows one piece of evidence, bound to what ``authorities`` bind to and not to the question."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def attest(self, binding: bytes) -> Evidence:
        return self._evidence


def bound_machine(amd: Amd, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr("deploy.attestation.hardware_smoke.os.urandom", lambda size: BINDING[:size])
    return Machine(amd.evidence())


def test_where_there_is_no_hardware_it_fails_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if Path("/sys/kernel/config/tsm/report").is_dir():
        pytest.skip("NOT TESTED: this machine may have the hardware")
    with pytest.raises(SystemExit, match="NOTHING WAS TESTED") as ended:
        main(tmp_path / "smoke", "")
    assert ended.value.code not in (0, None)
    said = capsys.readouterr().out
    assert "tsm: This machine makes no reports" in said
    assert "confidential-space: This is no container" in said
    assert not (tmp_path / "smoke").exists()


def test_evidence_of_this_machine_holds_under_a_policy_that_names_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    amd = Amd()
    found = smoke(bound_machine(amd, monkeypatch), tmp_path / "smoke", lambda: NOW, amd.roots)
    assert (found.refusal, found.version) == (None, "this machine")
    said = capsys.readouterr().out
    assert f"measurement {'11' * 48}" in said
    assert "FAILS" not in said
    evidence, expected = read_evidence_file((tmp_path / "smoke" / "evidence.json").read_bytes())
    assert (evidence.kind, expected.binding) == (found.kind, BINDING)


def test_evidence_of_before_fails_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amd = Amd()
    found = smoke(Machine(amd.evidence()), tmp_path, lambda: NOW, amd.roots)
    assert found.code == "attestation_binding"
    assert "FAILS      it is bound to the question" in capsys.readouterr().out


def test_evidence_that_nobody_vouches_for_fails(tmp_path: Path) -> None:
    found = smoke(Machine(Google().evidence()), tmp_path, lambda: NOW)
    assert found.code == "attestation_signature"


@pytest.mark.parametrize("sample", [TDX, SPACE], ids=["TDX", "Confidential Space"])
def test_a_policy_can_be_made_of_what_genuine_machines_measured(sample: Sample, tmp_path: Path) -> None:
    found = smoke(Machine(sample.evidence()), tmp_path, lambda: sample.at)
    held = {check.name for check in found.checks if check.holds}
    assert "its software is one that the policy names" in held


def test_a_policy_that_names_nothing_allows_nothing() -> None:
    assert json.loads(naming("sev_snp", None).model_dump_json())["sev_snp"]["allow"] == []
