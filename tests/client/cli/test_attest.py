"""``quorate-client attest``: evidence in words, held against a policy, and policies."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.attestation.appraisal import PROTECTS, TESTED
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Evidence
from quorate.attestation.evidence_file import MAX_FILE_BYTES, write_evidence_file
from quorate.attestation.kinds.software import software_evidence
from quorate_client.site.folder import SiteFolder
from tests.client.command_kit import Run, runner
from tests.protos.attestation.samples import GENOA, TDX, TDX_OUTDATED, sample

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
NOW = datetime(2026, 12, 1, tzinfo=UTC)
BINDING = bytes(range(64))
AT = ("--at", "2026-12-01")
DEVELOPMENT = f'environment = "development"\n[software]\nkeys = ["{KEY.public_key().public_bytes_raw().hex()}"]\n'
GENOA_POLICY = """
[sev_snp.least_tcb.Genoa]
bootloader = 10
tee = 0
snp = 25
microcode = 84
[[sev_snp.allow]]
name = "aggregator 1.2"
measurement = "c57729018b0a6fb90dc17bb138b0aa35e4401004283ff4a2c24d3739ff3750f52384370e77b7032862a08c440a9bc4dc"
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: SiteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    write("software.json", software_evidence(KEY, BINDING, bytes(32), NOW), Expected(BINDING, NOW))
    Path("development.toml").write_text(DEVELOPMENT)
    Path("genoa.toml").write_text(GENOA_POLICY)
    return runner(capsys, monkeypatch, folder)


def write(name: str, evidence: Evidence, expected: Expected) -> None:
    Path(name).write_bytes(write_evidence_file(evidence, expected))


def test_genuine_evidence_is_accepted_with_what_it_protects_against(run: Run) -> None:
    write("genoa.json", GENOA.evidence(), GENOA.expected)
    result = run("attest", "verify", "genoa.json", "--policy", "genoa.toml", "--at", "2025-10-01")
    assert result.code == 0
    assert "Accepted" in result.out
    assert "aggregator 1.2" in result.out
    assert f"It {PROTECTS}." in result.out
    assert TESTED in result.out


def test_genuine_evidence_that_is_refused_is_refused_with_its_code(run: Run) -> None:
    write("genoa.json", GENOA.evidence(), GENOA.expected)
    late = run("attest", "verify", "genoa.json", "--policy", "genoa.toml", *AT)
    assert (late.code, late.out) == (3, "")
    assert "Error [attestation_stale]" in late.err
    other = run("attest", "verify", "genoa.json", "--policy", "development.toml", *AT)
    assert "Error [attestation_kind]" in other.err


def test_what_a_machine_made_itself_is_read_with_its_kind_and_collateral(run: Run) -> None:
    Path("quote").write_bytes(sample(TDX.raw))
    Path("collateral").write_bytes(sample(TDX.endorsements))
    raw = ("quote", "--kind", "tdx", "--collateral", "collateral", "--at", "2025-06-20")
    shown = run("attest", "explain", *raw)
    assert shown.code == 0
    for words in (
        "a virtual machine on an Intel processor",
        "UpToDate (level of 2024-03-13, evaluation data number 17)",
        "91eb2b44d141d4ece09f0c75c2c53d24",
        "[attestation_measurement]",
        "[attestation_binding]: expected a question; none is known",
        "Refused with the code attestation_measurement",
        "name one with --policy",
        PROTECTS,
        TESTED,
    ):
        assert words in shown.out, words
    assert run("attest", "verify", *raw, "--policy", "genoa.toml").code == 2, "what it is bound to has to be said"
    bound = run("attest", "verify", *raw, "--binding", TDX.binding, "--policy", "genoa.toml")
    assert (bound.code, "attestation_kind" in bound.err) == (3, True)
    as_json = run("attest", "explain", *raw, "--json", "--binding", TDX.binding).json()
    assert [check["code"] for check in as_json["checks"] if not check["holds"]] == ["attestation_measurement"]
    assert as_json["remarks"] == [PROTECTS, TESTED]


def test_evidence_whose_signatures_do_not_hold_is_explained_without_what_it_says(run: Run) -> None:
    write("outdated.json", TDX_OUTDATED.evidence(), TDX_OUTDATED.expected)
    shown = run("attest", "explain", "outdated.json", "--at", "2026-02-20")
    assert shown.code == 0
    assert "Refused with the code attestation_tcb" in shown.out
    assert "mrtd" not in shown.out


def test_evidence_made_by_software_is_told_as_what_it_is_everywhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for command in (("verify", "software.json"), ("explain", "software.json")):
        result = run("attest", *command, "--policy", "development.toml", *AT)
        assert result.code == 0
        assert "\x1b[1;31mSOFTWARE EVIDENCE: for development." in result.out, command
        assert "It proves nothing about any machine" in result.out
        assert PROTECTS not in result.out
    monkeypatch.delenv("FORCE_COLOR")
    as_json = run("attest", "verify", "software.json", "--policy", "development.toml", *AT, "--json").json()
    assert as_json["accepted"]
    assert as_json["remarks"][0].startswith("SOFTWARE EVIDENCE")


def test_evidence_made_by_software_is_refused_where_the_policy_is_for_production(run: Run) -> None:
    result = run("attest", "verify", "software.json", "--policy", "genoa.toml", *AT)
    assert result.code == 3
    assert "Error [software_evidence_forbidden]" in result.err
    assert "software_evidence_forbidden" in run("attest", "explain", "software.json", *AT).out


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"no JSON",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"kind": "tdx", "evidence": "!", "binding": "00" * 64, "asked_at": "2026-12-01T00:00:00Z"}).encode(),
        json.dumps(
            {"kind": "tdx", "evidence": base64.b64encode(b"x").decode(), "binding": "00" * 64, "asked_at": "2026-12-01"}
        ).encode(),
        bytes(MAX_FILE_BYTES + 1),
    ],
    ids=["empty", "nothing", "text", "no text", "deep", "no base64", "no zone", "large"],
)
def test_what_is_no_evidence_file_is_wrong_input(run: Run, content: bytes) -> None:
    Path("file").write_bytes(content)
    result = run("attest", "explain", "file", *AT)
    assert result.code == 2
    assert "Error [bad_input]" in result.err


def test_what_goes_with_a_kind_does_not_go_without(run: Run) -> None:
    assert run("attest", "explain", "software.json", "--binding", "00" * 64).code == 2
    assert run("attest", "explain", "software.json", "--kind", "tdx", "--binding", "0g", *AT).code == 2
    assert run("attest", "explain", "software.json", "--kind", "unknown", *AT).code == 2


def test_a_policy_is_shown_with_what_it_allows(run: Run) -> None:
    result = run("attest", "policy", "check", "genoa.toml", *AT)
    assert result.code == 0
    assert "aggregator 1.2" in result.out
    assert "digest" in result.out
    as_json = run("attest", "policy", "check", "genoa.toml", "--json").json()
    assert as_json["policy"]["sev_snp"]["allow"][0]["name"] == "aggregator 1.2"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no section of any kind"),
        ("[nitro]\nallow = []\n", "[nitro] allows no software"),
        (GENOA_POLICY + "until = 2026-11-30\n", "its day is over"),
        (GENOA_POLICY.replace("Genoa", "Milan"), "forged by software alone"),
        (DEVELOPMENT, "for development: evidence made by software counts"),
        ('environment = "development"\n[software]\nkeys = []\n', "[software] names no key"),
    ],
)
def test_a_policy_that_lets_too_little_or_too_much_through_says_so(run: Run, text: str, told: str) -> None:
    Path("policy.toml").write_text(text)
    result = run("attest", "policy", "check", "policy.toml", *AT)
    assert result.code == 0
    assert told in result.out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[nitro]\nallow = []\nany = true\n", "nitro.any: unknown key"),
        (b"any = true\n", "any: unknown key, expected one of confidential_space, environment"),
        (b"[software]\nkeys = []\n", 'needs environment = "development"'),
        (b"allow =", "is not TOML"),
        (b"\xff", "is no text"),
    ],
)
def test_a_wrong_policy_is_refused_naming_the_key(run: Run, text: bytes, told: str) -> None:
    Path("policy.toml").write_bytes(text)
    result = run("attest", "policy", "check", "policy.toml")
    assert result.code == 2
    assert "Error [bad_config]" in result.err
    assert told in result.err
