"""Reference values: against published ones where there are any, and never of something else than was asked."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deploy.attestation.image_digest import digest_of
from deploy.attestation.launch_digest import Guest, launch_digest
from deploy.attestation.measure import main, piece
from quorate.errors import InputError
from quorate.study.attestation_section import Attestation
from tests.protos.attestation.samples import sample

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw().hex()
NOTHING = Path("/dev/null")
with_sev_snp_measure = pytest.mark.skipif(
    importlib.util.find_spec("sevsnpmeasure") is None,
    reason="NOT TESTED: sev-snp-measure is not installed (extra measure)",
)


def layout(folder: Path, **changed: Any) -> str:
    """An OCI layout with one image, good but for what is changed. Returns the digest of its manifest."""
    manifest = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()
    name = hashlib.sha256(manifest).hexdigest()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / name).write_bytes(changed.get("manifest", manifest))
    listed = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{name}"}
    (folder / "index.json").write_text(json.dumps({"manifests": changed.get("listed", [listed])}))
    return f"sha256:{name}"


def firmware(folder: Path, name: str = "AmdSev") -> Path:
    file = folder / "OVMF.fd"
    file.write_bytes(sample(f"virtee-sev/measurement/ovmf_{name}_suffix.bin"))
    return file


# The values of tests/measurement.rs of virtee/sev: another program for the same.
@with_sev_snp_measure
@pytest.mark.parametrize(
    ("changed", "digest"),
    [
        (
            {"command_line": "console=ttyS0 loglevel=7"},
            "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
        ),
        (
            {"command_line": "console=ttyS0 loglevel=7", "features": 0x21},
            "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
        ),
        (
            {"processors": 4},
            "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
        ),
        (
            {"kernel": None, "initrd": None},
            "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d",
        ),
    ],
    ids=["command line", "debug swap", "four processors", "no kernel"],
)
def test_a_launch_digest_is_the_published_one(changed: dict[str, Any], digest: str, tmp_path: Path) -> None:
    guest: dict[str, Any] = {"kernel": NOTHING, "initrd": NOTHING, "command_line": "", "processors": 1}
    assert launch_digest(Guest(firmware=firmware(tmp_path), processor="EPYC-v4", **(guest | changed))) == digest


@with_sev_snp_measure
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"processor": "Xeon"}, "processor is unknown"),
        ({"kernel": None}, "with a kernel only"),
        ({"firmware": Path("/nowhere")}, "cannot be computed"),
    ],
)
def test_what_cannot_be_measured_is_refused(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    guest: dict[str, Any] = {"firmware": NOTHING, "kernel": NOTHING, "initrd": None, "command_line": "quiet"}
    with pytest.raises(InputError, match=why):
        launch_digest(Guest(**(guest | {"processors": 1, "processor": "EPYC-v4"} | changed)))


@with_sev_snp_measure
def test_a_firmware_that_does_not_measure_kernels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SNP_KERNEL_HASHES"):
        launch_digest(Guest(firmware(tmp_path, "OvmfX64"), NOTHING, None, "", 1, "EPYC-v4"))


def test_the_digest_of_an_image_is_that_of_its_manifest_in_a_folder_and_in_an_archive(tmp_path: Path) -> None:
    digest = layout(tmp_path / "image")
    for name in (".", ""):
        with tarfile.open(tmp_path / "image.tar", "w") as archive:
            for file in ("index.json", *(f"blobs/sha256/{one.name}" for one in (tmp_path / "image").rglob("?" * 64))):
                archive.add(tmp_path / "image" / file, f"{name}/{file}" if name else file)
        assert digest_of(str(tmp_path / "image.tar")) == digest_of(str(tmp_path / "image")) == digest


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"manifest": b'{"config": "another"}'}, "damaged"),
        ({"listed": []}, "one image"),
        ({"listed": [{"digest": "sha256:aa"}, {"digest": "sha256:bb"}]}, "one image"),
        ({"listed": [{"digest": "sha256:../../x"}]}, "damaged"),
        ({"listed": [{"digest": "sha256:aa", "mediaType": "application/vnd.oci.image.index.v1+json"}]}, "one image"),
    ],
)
def test_what_is_not_one_whole_image_is_refused(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    layout(tmp_path / "image", **changed)
    with pytest.raises(InputError, match=why):
        digest_of(str(tmp_path / "image"))


@pytest.mark.parametrize(
    ("said", "digest"),
    [
        ({"Digest": "sha256:aa", "RepoDigests": ["registry.example/quorate@sha256:aa"]}, "sha256:aa"),
        ({"RepoDigests": ["registry.example/quorate@sha256:bb"]}, "sha256:bb"),
        ({"RepoDigests": []}, ""),
        ({"RepoDigests": ["a@sha256:aa", "b@sha256:bb"]}, ""),
    ],
)
def test_an_engine_is_believed_where_it_has_one_digest(
    said: dict[str, Any], digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "podman"
    program.write_text(f"#!/bin/sh\ncat <<'E'\n{json.dumps([said])}\nE\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if digest:
        assert digest_of("quorate") == digest
    else:
        with pytest.raises(InputError, match="push the image first"):
            digest_of("quorate")


@with_sev_snp_measure
def test_the_piece_is_one_of_a_study_that_a_policy_can_be_made_of(tmp_path: Path) -> None:
    digest = layout(tmp_path / "image")
    guest = Guest(firmware(tmp_path), NOTHING, None, "", 1, "EPYC-v4")
    said = tomllib.loads(piece("version 1", None, str(tmp_path / "image"), guest))["attestation"]
    least = dict.fromkeys(("bootloader", "tee", "snp", "microcode"), 1)
    said["policy"]["sev_snp"]["least_tcb"] = {"Genoa": least}
    policy = Attestation(required=True, **said).policy
    assert policy.confidential_space is not None
    assert policy.sev_snp is not None
    assert policy.confidential_space.allow[0].image_digest == digest
    assert policy.sev_snp.allow[0].measurement == launch_digest(guest)


def test_measurements_are_signed_and_a_changed_one_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout(tmp_path / "image")
    (tmp_path / "key.pem").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    main(["--image", str(tmp_path / "image"), "--until", "2027-01-31", "--sign", str(tmp_path / "key.pem")])
    text = capsys.readouterr().out
    assert "until = 2027-01-31" in text
    file = tmp_path / "measurements.toml"
    file.write_text(text)
    assert tomllib.loads(text)
    main(["--verify", str(file), "--by", PUBLIC])
    assert "is signed by" in capsys.readouterr().out
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    for content, by in ((text.replace("2027", "2028"), PUBLIC), (text, other), (text.partition("# sig")[0], PUBLIC)):
        file.write_text(content)
        with pytest.raises(InputError, match="not signed as they are"):
            main(["--verify", str(file), "--by", by])


def test_the_pieces_that_the_guide_shows_are_ones_of_a_study() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "attested-aggregator.md").read_text(encoding="utf-8")
    pieces = [tomllib.loads(text).get("attestation", {}) for text in re.findall(r"```toml\n(.*?)```", guide, re.S)]
    policies = [Attestation(required=True, policy=one["policy"]).policy for one in pieces if "policy" in one]
    named = [section.allow for one in policies if (section := one.confidential_space) is not None]
    assert [len(allow) for allow in named] == [1, 2]


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        main(["--name", "x"])
