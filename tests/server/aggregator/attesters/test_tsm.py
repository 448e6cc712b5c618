"""Evidence asked of a kernel that the tests stand in for. What such a kernel does on hardware was not seen."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from quorate.attestation.appraise import examine
from quorate.attestation.binding import Expected
from quorate.attestation.evidence import Kind
from quorate.attestation.policy import AttestationPolicy, LeastTcb, SnpPolicy, SnpVersion
from quorate.errors import AttestationError, CollateralError, ConfigError, EvidenceKindError
from quorate_server.aggregator.attesters.endorsements import read_endorsements, vcek_in_table
from quorate_server.aggregator.attesters.tsm import ReportFolder, TsmAttester
from tests.protos.attestation.authorities import BINDING, EXPECTED, NOW, Amd
from tests.protos.attestation.samples import GENOA, POLICY, TDX, Sample, refused

from .kernel import Kernel

VCEK, VLEK, ASK = (
    bytes.fromhex(text.replace("-", ""))
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    )
)
LEAST = LeastTcb(bootloader=0, tee=0, snp=0, microcode=0)
SNP = AttestationPolicy(
    sev_snp=SnpPolicy(allow=(SnpVersion(name="one", measurement="11" * 48),), least_tcb={"Genoa": LEAST})
)


def table(*certificates: tuple[bytes, bytes]) -> bytes:
    """A certificate table as hosts keep it: entries, an empty one, the certificates, and the rest of a page."""
    start, entries, bodies = 24 * (len(certificates) + 1), b"", b""
    for guid, body in certificates:
        entries += struct.pack("<16sII", guid, start + len(bodies), len(body))
        bodies += body
    return (entries + bytes(24) + bodies).ljust(4096, b"\x00")


def snp_kernel(amd: Amd) -> Kernel:
    """A guest whose secure processor is one of our own. It signs one question only."""
    made = amd.evidence()

    def report(asked: bytes) -> tuple[bytes, bytes]:
        assert asked == BINDING
        return made.raw, table((ASK, b"ask"), (VCEK, made.endorsements))

    return Kernel("sev_guest", report)


def replaying(provider: str, sample: Sample, beside: bytes = b"") -> Kernel:
    """A machine that shows evidence of before, whatever it is asked."""
    raw = sample.evidence().raw
    return Kernel(provider, lambda asked: (raw, beside))


def collateral(folder: Path, content: bytes = b"{}") -> Path:
    file = folder / "endorsements"
    file.write_bytes(content)
    return file


def test_a_snp_guest_makes_evidence_that_a_site_accepts_with_the_vcek_of_the_hosts_table() -> None:
    amd = Amd()
    kernel = snp_kernel(amd)
    evidence = TsmAttester(None, kernel).attest(BINDING)
    assert evidence.kind is Kind.SEV_SNP
    assert examine(evidence, EXPECTED, SNP, NOW, amd.roots).refusal is None
    assert kernel.entries == {}


def test_a_vcek_that_the_operator_names_goes_before_the_hosts_table(tmp_path: Path) -> None:
    attester = TsmAttester(collateral(tmp_path, b"\x30first"), snp_kernel(Amd()))
    assert attester.attest(BINDING).endorsements == b"\x30first"


def test_endorsements_are_read_anew_for_each_piece_of_evidence(tmp_path: Path) -> None:
    file = collateral(tmp_path, b'{"old": true}')
    attester = TsmAttester(file, Kernel("tdx_guest", lambda asked: (b"quote", b"")))
    assert attester.attest(BINDING).endorsements == b'{"old": true}'
    file.write_bytes(b'{"new": true}')
    assert attester.attest(BINDING).endorsements == b'{"new": true}'


def test_a_trust_domain_makes_evidence_that_a_site_accepts(tmp_path: Path) -> None:
    attester = TsmAttester(collateral(tmp_path, TDX.evidence().endorsements), replaying("tdx_guest", TDX))
    evidence = attester.attest(TDX.expected.binding)
    assert evidence.kind is Kind.TDX
    assert examine(evidence, TDX.expected, POLICY, TDX.at).refusal is None


@pytest.mark.parametrize(("provider", "sample"), [("sev_guest", GENOA), ("tdx_guest", TDX)], ids=["SNP", "TDX"])
def test_a_genuine_report_of_before_parses_and_is_refused_for_its_binding(
    provider: str, sample: Sample, tmp_path: Path
) -> None:
    attester = TsmAttester(collateral(tmp_path, sample.evidence().endorsements), replaying(provider, sample))
    found = examine(attester.attest(BINDING), Expected(BINDING, sample.at), POLICY, sample.at)
    assert refused(found) == ["attestation_binding"]


def test_a_genuine_vcek_is_found_in_a_table() -> None:
    vcek = GENOA.evidence().endorsements
    attester = TsmAttester(None, replaying("sev_guest", GENOA, table((ASK, b"ask"), (VCEK, vcek))))
    found = examine(attester.attest(BINDING), GENOA.expected, POLICY, GENOA.at)
    assert found.refusal is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(4096),
        table((VLEK, b"vlek"), (ASK, b"ask")),
        struct.pack("<16sII", VCEK, 48, 1000) + bytes(100),
        table((VCEK[::-1], b"vcek")),
        struct.pack("<16sII", bytes(16), 0, 0) + table((VCEK, b"behind the end")),
    ],
    ids=["empty", "zeros", "a VLEK", "out of bounds", "another order", "behind the end"],
)
def test_a_table_without_a_vcek_is_refused_and_says_what_to_do(content: bytes) -> None:
    with pytest.raises(CollateralError, match="--endorsements"):
        vcek_in_table(content)


def test_a_question_of_somebody_else_in_between_is_noticed() -> None:
    kernel = snp_kernel(Amd())
    kernel.on_read = lambda entry: kernel.write(entry, "inblob", BINDING)
    with pytest.raises(AttestationError, match="something else meanwhile"):
        TsmAttester(None, kernel).attest(BINDING)
    assert kernel.entries == {}


def test_a_kernel_that_makes_no_report_is_an_answer_that_is_withheld_and_leaves_no_entry() -> None:
    def broken(asked: bytes) -> tuple[bytes, bytes]:
        raise OSError(errno.EIO, "Input/output error")

    kernel = Kernel("sev_guest", broken)
    attester = TsmAttester(None, kernel)
    with pytest.raises(AttestationError, match="Input/output error"):
        attester.attest(BINDING)
    assert kernel.entries == {}


def test_an_empty_report_is_none() -> None:
    kernel = Kernel("sev_guest", lambda asked: (b"", table((VCEK, b"vcek"))))
    with pytest.raises(EvidenceKindError):
        TsmAttester(None, kernel).attest(BINDING)


@pytest.mark.parametrize(
    ("provider", "why"), [("", "No such device"), ("arm_cca_guest", "arm_cca_guest")], ids=["none", "another"]
)
def test_a_machine_that_makes_no_such_reports_does_not_start(provider: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        TsmAttester(None, Kernel(provider, lambda asked: (b"", b"")))


def test_a_machine_without_the_kernels_folder_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tsm/report.*6\.7 or newer"):
        TsmAttester(None, ReportFolder(tmp_path / "nowhere"))


def test_a_trust_domain_does_not_start_without_collateral() -> None:
    with pytest.raises(ConfigError, match="--endorsements"):
        TsmAttester(None, Kernel("tdx_guest", lambda asked: (b"", b"")))


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\n", bytes(256 * 1024 + 1)])
def test_a_file_that_holds_no_endorsements_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "endorsements"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CollateralError):
        read_endorsements(file)


def test_a_folder_writes_what_is_there_in_one_piece_and_makes_no_file(tmp_path: Path) -> None:
    folder = ReportFolder(tmp_path)
    folder.make("one")
    with pytest.raises(FileNotFoundError):
        folder.write("one", "inblob", BINDING)
    (tmp_path / "one" / "inblob").touch()
    folder.write("one", "inblob", BINDING)
    assert folder.read("one", "inblob") == BINDING
    (tmp_path / "one" / "inblob").unlink()
    folder.remove("one")
    assert list(tmp_path.iterdir()) == []
