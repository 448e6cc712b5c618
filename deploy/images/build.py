"""Builds an OCI image of one program as the Dockerfile says, without an engine and without root's help from one.

    python deploy/images/build.py server|operator|site|aggregator BUNDLE FOLDER      `make image-server` does it

BUNDLE is the archive of `make bundle`. Debian's packages come through mmdebstrap, the image is packed by umoci. Writes
FOLDER/quorate-ROLE.tar (an OCI archive: `podman load`, `docker load` from version 25 on, `skopeo copy`) and says how
large it is. What an image runs as, with which environment and where it listens, is read from the Dockerfile: the one
beside this file, and the aggregator's own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROLES = ("server", "operator", "site")
AGGREGATOR = "aggregator"
_EPOCH = "2024-01-01T00:00:00Z"
_LEFT_OUT = ("doc", "man", "info", "locale", "lintian", "bug")


def dockerfile_of(role: str) -> Path:
    """What is measured has a file of its own."""
    return (HERE.parent / "confidential-space" if role == AGGREGATOR else HERE) / "Dockerfile"


def stage(dockerfile: str, role: str) -> list[tuple[str, str]]:
    """The instructions of the stage named ``role``, in order."""
    lines = [line for line in dockerfile.replace("\\\n", "").splitlines() if line and not line.startswith("#")]
    inside, found = False, list[tuple[str, str]]()
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            inside = rest.rpartition(" AS ")[2] == role
        elif inside:
            found.append((word, rest.strip()))
    return found


def settings(instructions: list[tuple[str, str]]) -> Iterator[str]:
    """How umoci is told the same."""
    for word, rest in instructions:
        match word:
            case "ENV":
                yield from (f"--config.env={pair}" for pair in shlex.split(rest))
            case "USER":
                yield f"--config.user={rest}"
            case "WORKDIR":
                yield f"--config.workingdir={rest}"
            case "VOLUME":
                yield f"--config.volume={rest}"
            case "EXPOSE":
                yield from (f"--config.exposedports={port}/tcp" for port in rest.split())
            case "ENTRYPOINT" | "CMD":
                yield from (f"--config.{word.lower()}={argument}" for argument in json.loads(rest))
            case "LABEL":
                name, _, value = rest.partition("=")
                yield f"--config.label={json.loads(name)}={json.loads(value)}"
            case "COPY":
                continue  # it is what the root file system below is made for
            case _:
                raise SystemExit(f"build.py does not know {word} in a final stage of the Dockerfile")


def main(role: str, bundle: Path, folder: Path) -> None:
    missing = [name for name in ("mmdebstrap", "umoci") if shutil.which(name) is None]
    if missing:
        sys.exit(f"build.py: {' and '.join(missing)} not found; they are packages of Debian")
    work = folder / role
    shutil.rmtree(work, ignore_errors=True)
    root, layout = work / "root", work / "image"
    work.mkdir(parents=True)
    _unpack(bundle, work / "bundle")
    _make_root(role, root, work / "bundle")
    tag = f"{layout}:latest"
    _run("umoci", "init", "--layout", layout)
    _run("umoci", "new", "--image", tag)
    _run("umoci", "insert", "--image", tag, root, "/")
    wanted = settings(stage(dockerfile_of(role).read_text(encoding="utf-8"), role))
    _run("umoci", "config", "--image", tag, "--created", _EPOCH, "--os=linux", *wanted)
    _run("umoci", "gc", "--layout", layout)
    _name(layout, f"docker.io/library/quorate-{role}:latest")
    archive = folder / f"quorate-{role}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, ".")
    shutil.rmtree(work)
    print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB compressed")


def _name(layout: Path, name: str) -> None:
    """What engines call the image once they have loaded the archive."""
    index = json.loads((layout / "index.json").read_bytes())
    for manifest in index["manifests"]:
        manifest.setdefault("annotations", {})["io.containerd.image.name"] = name
    (layout / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _unpack(bundle: Path, target: Path) -> None:
    with tarfile.open(bundle) as tar:
        top = tar.getnames()[0]
        tar.extractall(target.parent, filter="data")
    (target.parent / top).rename(target)


def _make_root(role: str, root: Path, bundle: Path) -> None:
    """Debian with Python, the program installed in it, and a folder for its user."""
    steps = (
        f'cp -R {shlex.quote(str(bundle))} "$1/bundle"',
        f'chroot "$1" /bundle/install.sh {role} --unsigned --no-system',
        'rm -rf "$1/bundle" "$1"/var/cache/* "$1"/var/lib/apt/lists/*',
        'echo "quorate:x:65532:65532::/tmp:/usr/sbin/nologin" >> "$1/etc/passwd"',
        'echo "quorate:x:65532:" >> "$1/etc/group"',
        'install -d -o 65532 -g 65532 -m 0700 "$1/var/lib/quorate"',
    )
    _run(
        *("mmdebstrap", "--quiet", "--variant=essential", "--include=python3,libstdc++6"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT),
        *(f"--customize-hook={step}" for step in steps),
        *("bookworm", root),
    )


def _run(*command: str | Path) -> None:
    subprocess.run(
        [str(word) for word in command], check=True, stdin=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in (*ROLES, AGGREGATOR):
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve())
