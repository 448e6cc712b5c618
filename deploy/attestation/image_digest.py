"""The digest by which a registry knows an image, and Confidential Space tells it: that of its manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from quorate.errors import InputError

ENGINES = ("podman", "docker")
_MAX_BYTES = 4 * 1024 * 1024
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


def digest_of(image: str) -> str:
    """``sha256:…`` of an OCI layout, an OCI archive, or an image that an engine of this machine has.

    Raises:
        InputError: it is none of these, holds several images, or is damaged.
    """
    path = Path(image)
    if path.is_dir():
        return _of_layout(lambda name: _read_file(path / name), image)
    if path.is_file():
        with tarfile.open(path) as archive:
            return _of_layout(lambda name: _read_member(archive, name), image)
    return _of_engine(image)


def _of_layout(read: Callable[[str], bytes], image: str) -> str:
    listed = json.loads(read("index.json"))["manifests"]
    if len(listed) != 1 or listed[0].get("mediaType") in _INDEXES:
        raise InputError(f"{image} does not hold one image", expected="one image, for one processor", got=f"{listed}")
    digest = str(listed[0]["digest"])
    algorithm, _, name = digest.partition(":")
    content = read(f"blobs/{algorithm}/{name}") if algorithm == "sha256" and name.isalnum() else b""
    if hashlib.sha256(content).hexdigest() != name or "config" not in json.loads(content):
        raise InputError(f"{image} is damaged", expected=f"a manifest whose digest is {digest[:80]}")
    return digest


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: is this an OCI layout?", got=str(error.strerror)) from error


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    for spelled in (name, f"./{name}"):
        try:
            member = archive.extractfile(spelled)
        except KeyError:
            continue
        if member is not None:
            return member.read(_MAX_BYTES)
    raise InputError(
        f"The archive has no {name}: is it one of OCI?",
        action="Save it as one: skopeo copy … oci-archive:FILE",
    )


def _of_engine(image: str) -> str:
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        raise InputError(f"There is no file {image}, and no engine to ask for it", expected=" or ".join(ENGINES))
    done = subprocess.run([engine, "image", "inspect", image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"{engine} does not know {image}", got=done.stderr.strip()[:200])
    (found,) = json.loads(done.stdout)
    # Podman knows the digest of its own; Docker one that a registry gave, after a push or a pull.
    digests = {found.get("Digest") or "", *(each.partition("@")[2] for each in found.get("RepoDigests") or ())} - {""}
    if len(digests) != 1:
        raise InputError(
            f"{engine} has no one digest for {image}",
            expected="one: push the image first, or give an OCI archive of it",
            got=", ".join(sorted(digests)) or "none",
        )
    return str(digests.pop())
