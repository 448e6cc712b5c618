"""Proves a bundle: installs server and site where there is no network, and runs a study between a server and two sites.

    python deploy/bundle/check.py ARCHIVE        `make bundle-check` does it

Everything happens in a network namespace that has loopback and no route, below a folder that is deleted afterwards.
Takes root, or a system that lets ordinary users make namespaces.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSIDE = "QUORATE_BUNDLE_CHECK"
STUDY = """\
name = "check"
purpose = "See whether an installation from the bundle works."
sites = ["north", "east"]
seed = 1

[task]
name = "tabular-classifier"

[task.parameters]
schema_file = "schema.toml"
model = "logistic"
learning_rate = 0.07

[rounds]
count = 2
quorum = 2
deadline_s = 300

[protection]
mode = "secagg"
colluders = 0

[release]
model = "operator"
"""
POLICY = {"minimum_sites": "2", "colluders": "0", "require_isolation": "true"}


def main(archive: Path) -> None:
    """Outside of the namespace: lay out what it needs, and go in."""
    with tempfile.TemporaryDirectory(prefix="quorate-bundle-") as name:
        folder = Path(name)
        (folder / "data").mkdir()
        subprocess.run(
            [sys.executable, "demo/hospitals.py", folder / "data"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        (folder / "schema.toml").write_bytes((ROOT / "demo" / "schema.toml").read_bytes())
        (folder / "study.toml").write_text(STUDY, encoding="utf-8")
        enter = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        loopback = 'ip link set lo up && exec "$@"'
        command = [*enter, "sh", "-ec", loopback, "check", sys.executable, __file__, str(archive.resolve())]
        subprocess.run(command, check=True, env=os.environ | {INSIDE: name})


def inside(archive: Path, folder: Path) -> None:
    """In the namespace: install, and run a study with what was installed and nothing else."""
    routes = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    if routes:
        sys.exit(f"check.py: there is a route here, so this would prove nothing: {routes}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        content = folder / tar.getnames()[0]
    _compare_materials(content)
    prefix = folder / "opt"
    for role in ("server", "site"):
        started, worked = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        options = ("--unsigned", "--no-system", "--prefix", prefix, "--python", sys.executable)
        subprocess.run([content / "install.sh", role, *options], check=True, stdout=subprocess.DEVNULL)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor_s = now.ru_utime + now.ru_stime - worked.ru_utime - worked.ru_stime
        print(
            f"{role}: installed in {time.monotonic() - started:.0f} s ({processor_s:.0f} s of a processor), no network"
        )
    python = prefix / "current" / "bin" / "python"
    script = "from deploy.bundle.check import study; import sys; study(*sys.argv[1:])"
    subprocess.run([python, "-c", script, folder, prefix], check=True, cwd=ROOT)


def _compare_materials(content: Path) -> None:
    """Whether the list of materials names what is installed, in the same versions."""
    from packaging.utils import canonicalize_name  # not installed where study() runs

    components = json.loads((content / "sbom.cdx.json").read_bytes())["components"]
    listed = {(canonicalize_name(one["name"]), one["version"]) for one in components}
    for path in content.glob("requirements-*.txt"):
        wanted = {line.partition(" ")[0] for line in path.read_text(encoding="utf-8").splitlines()}
        pairs = {(canonicalize_name(name), version) for name, _, version in (pin.partition("==") for pin in wanted)}
        if missing := pairs - listed - {("quorate", (content / "VERSION").read_text(encoding="utf-8").strip())}:
            sys.exit(f"check.py: sbom.cdx.json does not list {sorted(missing)}")


def study(root: str, prefix: str) -> None:
    """Run by the installed Python: two rounds between a server and two sites."""
    import quorate
    from demo.consortium import Consortium, write_settings

    folder = Path(root)
    if not Path(quorate.__file__).is_relative_to(Path(prefix).resolve()):
        sys.exit(f"check.py: this is not the installed program: {quorate.__file__}")
    started = time.monotonic()
    tables = {name: folder / "data" / f"{name}.csv" for name in ("north", "east")}
    with Consortium(folder) as consortium:
        consortium.found()
        consortium.start_server()
        consortium.set_up_sites(tables, folder / "schema.toml")
        for name in tables:
            write_settings(consortium.site_state(name) / "policy.toml", POLICY)
            consortium.start_site(name)
        consortium.operator("study", "publish", folder / "study.toml")
        consortium.approve("check")
        consortium.operator("run", "start", "check")
        consortium.operator("run", "watch", "check")
        consortium.operator("run", "report", "check", "--format", "json", "-o", folder / "report.json")
    report = json.loads((folder / "report.json").read_bytes())
    print(f"two rounds between a server and two sites: {report['run']['state']} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if INSIDE in os.environ:
        inside(Path(sys.argv[1]), Path(os.environ[INSIDE]))
    else:
        main(Path(sys.argv[1]))
