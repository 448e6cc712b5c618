"""Builds the offline bundle: everything that an installation needs, in one file that needs no network.

    python deploy/bundle/build.py FOLDER        writes FOLDER/quorate-VERSION-….tar; `make bundle` does it

QUORATE_SIGNING_KEY names a minisign secret key; without one the bundle is not signed, and says so. The machine that
builds decides for which Python and processor the bundle is. PyTorch must come as its build for the processor alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROLES = {
    "server": "quorate[server,postgresql]",
    "operator": "quorate",
    "site": "quorate[site]",
    "aggregator": "quorate[aggregator]",
}
CONSTRAINTS = ("--constraint", str(ROOT / "constraints.txt"))
COPIED = (
    ("deploy/bundle/install.sh", "install.sh"),
    ("deploy/systemd", "systemd"),
    ("deploy/config", "config"),
    ("docs", "docs"),
    ("LICENSE", "LICENSE"),
)


class BundleError(Exception):
    """The bundle cannot be built; the message says why."""


def main(folder: Path) -> Path:
    """Build in ``folder``, which is emptied first. Returns the archive."""
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    _collect(wheels)
    version = next(wheels.glob("quorate-*.whl")).name.split("-")[1]
    content = (
        folder / f"quorate-{version}-py{sys.version_info[0]}{sys.version_info[1]}-{sys.platform}-{platform.machine()}"
    )
    content.mkdir()
    wheels.rename(content / "wheels")
    for source, name in COPIED:
        _copy(ROOT / source, content / name)
    (content / "VERSION").write_text(version + "\n")
    (content / "PYTHON").write_text(
        f"{platform.python_version().rpartition('.')[0]} {sys.platform} {platform.machine()}\n"
    )
    for role, wanted in ROLES.items():
        lines = list(requirements(content / "wheels", wanted))
        (content / f"requirements-{role}.txt").write_text("".join(f"{line}\n" for line in lines))
    _bill_of_materials(content, folder / "all")
    checksums = content / "SHA256SUMS"
    checksums.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests(content).items())))
    sign(checksums, os.environ.get("QUORATE_SIGNING_KEY"))
    return _packed(content)


def _collect(wheels: Path) -> None:
    """All wheels of all roles. PyTorch first, so that nothing else can decide for another build of it."""
    _pip("wheel", "--wheel-dir", wheels, *CONSTRAINTS, "--no-deps", "torch==2.13.0")
    every = sorted(
        {extra for text in ROLES.values() for extra in text.partition("[")[2].rstrip("]").split(",") if extra}
    )
    _pip("wheel", "--wheel-dir", wheels, "--find-links", wheels, *CONSTRAINTS, f"{ROOT}[{','.join(every)}]", "pip")
    require_no_gpu_build(path.name for path in wheels.iterdir())


def require_no_gpu_build(names: Iterator[str] | Sequence[str]) -> None:
    """Several gigabytes that no site without a graphics card can use.

    Raises:
        BundleError: PyTorch came with them.
    """
    found = sorted(name for name in names if name.startswith(("nvidia_", "triton-", "cuda_")))
    if found:
        raise BundleError(
            f"PyTorch came as a build for graphics cards ({found[0]} and {len(found) - 1} more). "
            "Have pip find the build for processors, for example with PIP_FIND_LINKS"
        )


def requirements(wheels: Path, wanted: str) -> Iterator[str]:
    """What ``wanted`` takes from the folder of wheels, each with its version and its hash."""
    report = _pip(
        "install", "--dry-run", "--ignore-installed", "--no-index", "--find-links", wheels, "--report", "-", wanted
    )
    for entry in sorted(json.loads(report)["install"], key=lambda entry: entry["metadata"]["name"].lower()):
        digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        yield f"{entry['metadata']['name']}=={entry['metadata']['version']} --hash=sha256:{digest}"


def digests(content: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path below ``content``."""
    files = (path for path in content.rglob("*") if path.is_file())
    return {str(path.relative_to(content)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sign(checksums: Path, key: str | None) -> None:
    """Sign the list of checksums, which vouches for everything else.

    Raises:
        BundleError: a key was named and does not sign. An unsigned bundle is never taken for a signed one.
    """
    if key is None:
        print("NOT SIGNED: QUORATE_SIGNING_KEY names no minisign secret key", file=sys.stderr)
        return
    command = ["minisign", "-S", "-s", key, "-m", str(checksums), "-x", f"{checksums}.minisig"]
    if shutil.which("minisign") is None or subprocess.run(command, check=False).returncode != 0:
        raise BundleError(
            f"minisign does not sign with {key}: is it installed, is that a secret key, is the password right?"
        )


def _bill_of_materials(content: Path, environment: Path) -> None:
    """CycloneDX, from an installation of everything, for licences and dependencies stand in the metadata only."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    roles = [word for role in ROLES for word in ("-r", str(content / f"requirements-{role}.txt"))]
    offline = ("--no-index", "--find-links", str(content / "wheels"), "--no-deps", "--no-compile", "--require-hashes")
    _pip("--python", python, "install", *offline, *roles)
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "cyclonedx_py",
                "environment",
                str(python),
                "--pyproject",
                str(ROOT / "pyproject.toml"),
            ),
            *("--output-reproducible", "--of", "JSON", "-o", str(content / "sbom.cdx.json")),
        ],
        check=True,
    )
    shutil.rmtree(environment)


def _packed(content: Path) -> Path:
    archive = content.with_name(f"{content.name}.tar")

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w") as tar:
        tar.add(content, content.name, filter=anonymous)
    shutil.rmtree(content)
    return archive


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    else:
        shutil.copy2(source, target)


def _pip(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd="/").stdout


if __name__ == "__main__":
    try:
        print(main(Path(sys.argv[1]).resolve()))
    except BundleError as problem:
        sys.exit(f"build.py: {problem}")
