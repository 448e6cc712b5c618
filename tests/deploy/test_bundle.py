"""What the bundle's installer refuses, and that nothing is installed then. `make bundle-check` installs a whole one."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.bundle.build import ROOT, BundleError, digests, require_no_gpu_build, sign

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]} {sys.platform} {platform.machine()}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle without wheels: everything that is looked at before they are."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(ROOT / "deploy" / "bundle" / "install.sh", folder)
    for name, text in {"VERSION": "0.1.0", "PYTHON": PYTHON, "requirements-site.txt": "nothing"}.items():
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    write_checksums(folder)
    return folder


def write_checksums(folder: Path) -> None:
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests(folder).items()) if "SHA256SUMS" not in name]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def install(bundle: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and what was said; nothing may be there afterwards."""
    prefix = bundle.parent / "opt"
    command = ["sh", str(bundle / "install.sh"), *arguments, "--no-system", "--prefix", str(prefix)]
    done = subprocess.run([*command, "--python", sys.executable], capture_output=True, text=True, check=False)
    assert not (prefix / "current").exists()
    return done.returncode, done.stderr


def test_a_bundle_is_not_installed_without_saying_whose_it_is(bundle: Path) -> None:
    code, said = install(bundle, "site")
    assert code == 2
    assert "Name the publisher's key" in said


def test_a_file_that_was_changed_is_found(bundle: Path) -> None:
    (bundle / "VERSION").write_text("6.6.6\n", encoding="utf-8")
    code, said = install(bundle, "site", "--unsigned")
    assert code == 1
    assert "A file is not what SHA256SUMS says" in said
    assert not (bundle.parent / "opt").exists()


def added_file(bundle: Path) -> None:
    (bundle / "sitecustomize.py").write_text("import antigravity\n", encoding="utf-8")


def added_link(bundle: Path) -> None:
    (bundle / "quorate-site.service").symlink_to("/etc/hostname")


def added_sums(bundle: Path) -> None:
    (bundle / "wheels").mkdir()
    (bundle / "wheels" / "SHA256SUMS.whl").write_bytes(b"")


@pytest.mark.parametrize("add", [added_file, added_link, added_sums])
def test_what_was_added_is_found(bundle: Path, add: Callable[[Path], None]) -> None:
    add(bundle)
    code, said = install(bundle, "site", "--unsigned")
    assert code == 1
    assert "does not list" in said
    assert not (bundle.parent / "opt").exists()


def test_a_bundle_for_another_python_is_refused_with_both_named(bundle: Path) -> None:
    (bundle / "PYTHON").write_text("2.7 linux vax\n", encoding="utf-8")
    write_checksums(bundle)
    code, said = install(bundle, "site", "--unsigned")
    assert code == 1
    assert "2.7 linux vax" in said
    assert PYTHON in said
    assert not (bundle.parent / "opt").exists()


def test_an_installation_that_fails_leaves_the_version_that_runs(bundle: Path) -> None:
    code, said = install(bundle, "site", "--unsigned")  # there are no wheels
    assert code != 0
    assert "WARNING: the signature is not checked" in said


@pytest.mark.parametrize("arguments", [(), ("everything",), ("site", "--quickly")])
def test_what_the_installer_does_not_know_it_does_not_guess(bundle: Path, arguments: tuple[str, ...]) -> None:
    assert install(bundle, *arguments)[0] == 2


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """Two publishers' key pairs, without passwords."""
    if shutil.which("minisign") is None:
        pytest.skip("NOT TESTED: minisign is not installed")
    pairs = {name: (tmp_path / f"{name}.key", tmp_path / f"{name}.pub") for name in ("ours", "theirs")}
    for secret, public in pairs.values():
        subprocess.run(["minisign", "-G", "-W", "-s", secret, "-p", public], check=True, capture_output=True)
    return pairs


def test_a_signature_of_somebody_else_is_refused(bundle: Path, keys: dict[str, tuple[Path, Path]]) -> None:
    sign(bundle / "SHA256SUMS", str(keys["theirs"][0]))
    code, said = install(bundle, "site", "--key", str(keys["ours"][1]))
    assert code == 1
    assert "is not signed by" in said
    assert not (bundle.parent / "opt").exists()


def test_the_publishers_signature_vouches_for_every_file(bundle: Path, keys: dict[str, tuple[Path, Path]]) -> None:
    sign(bundle / "SHA256SUMS", str(keys["ours"][0]))
    (bundle / "PYTHON").write_text("2.7 linux vax\n", encoding="utf-8")
    code, said = install(bundle, "site", "--key", str(keys["ours"][1]))
    assert "A file is not what SHA256SUMS says" in said
    write_checksums(bundle)  # whoever changes a file can do that
    code, said = install(bundle, "site", "--key", str(keys["ours"][1]))
    assert code == 1
    assert "is not signed by" in said


def test_a_key_that_does_not_sign_is_no_reason_to_go_on_unsigned(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not sign"):
        sign(bundle / "SHA256SUMS", str(tmp_path / "no.key"))


def test_a_build_of_torch_for_graphics_cards_is_not_packed() -> None:
    require_no_gpu_build(["torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", "numpy-2.4.6.whl"])
    with pytest.raises(BundleError, match="build for graphics cards"):
        require_no_gpu_build(["torch-2.13.0.whl", "nvidia_cublas-13.0.whl", "triton-3.5.whl"])


def test_checksums_are_of_all_files_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"x")
    assert digests(tmp_path) == {"a/b/c": hashlib.sha256(b"x").hexdigest()}
