"""The units: how much they leave open, and that tasks of a site can still be cut off from network and keys."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from deploy.images.seccomp import call_sets, permitted_calls
from quorate.errors import CertificateRevokedError, ConfigError, IdentityClonedError, IdentityError, SupersededError
from quorate_client.cli import exit_code
from quorate_client.workers import isolation

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
# As the security review says. A site's daemon keeps what its tasks need to be confined further, an aggregator what it
# takes to ask the kernel for a report.
MOST_OF_A_UNIT = {"quorate-client.service": 2.5, "quorate-aggregator.service": 1.6}
MOST_OF_OTHERS = 1.5
KERNELS_REPORTS = "-/sys/kernel/config/tsm/report"
# What confine() does, as the kernel names it: its own calls through the C library, and those of Python's functions.
ISOLATION_CALLS = {"unshare", "mount", "mount_setattr", "prctl", "capset", "prlimit64", "setpriority", "clone", "chdir"}


def analyze(*arguments: str | Path) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed (package systemd)")
    done = subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def directives(unit: Path) -> dict[str, list[str]]:
    """All values of each key, in order: systemd adds up what is said several times."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def calls_in(unit: Path) -> set[str]:
    """The system calls that a unit permits."""
    analyze("syscall-filter")  # or skip
    return permitted_calls(unit.read_text(encoding="utf-8"), call_sets())


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_a_unit_leaves_little_open(unit: Path) -> None:
    text = analyze("security", "--offline=true", "--no-pager", unit)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
    assert exposure is not None
    assert float(exposure[1]) < MOST_OF_A_UNIT.get(unit.name, MOST_OF_OTHERS)


def test_an_unhardened_unit_would_be_found(tmp_path: Path) -> None:
    unit = tmp_path / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    text = analyze("security", "--offline=true", "--no-pager", unit)
    assert float(re.findall(r"level for \S+: ([\d.]+)", text)[0]) > MOST_OF_A_UNIT["quorate-client.service"]


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    for unit in UNITS.glob("*.[st]*[er]"):
        program = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(encoding="utf-8"), flags=re.M)
        (tmp_path / unit.name).write_text(program, encoding="utf-8")
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed (package systemd)")
    command = ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # It looks at the machine's own units too, and complains about those.
    assert [line for line in done.stderr.splitlines() if "quorate" in line] == []


def test_a_site_may_make_the_namespaces_in_which_its_tasks_are_cut_off() -> None:
    path = UNITS / "quorate-client.service"
    unit = directives(path)
    assert set(unit["RestrictNamespaces"][0].split()) == {"user", "net", "mnt"}
    assert not ISOLATION_CALLS - calls_in(path)
    # Mounts of theirs must not be of a kind that the kernel keeps from a user's namespace.
    assert "SecureBits" not in unit


def test_a_unit_that_forbids_what_isolation_needs_would_be_found() -> None:
    path = UNITS / "quorate-server.service"
    unit = directives(path)
    assert {"mount", "mount_setattr", "capset"} <= ISOLATION_CALLS - calls_in(path)
    assert unit["RestrictNamespaces"] == ["yes"]


def test_the_list_of_calls_that_isolation_needs_is_that_of_its_code() -> None:
    tree = ast.parse(Path(isolation.__file__).read_text(encoding="utf-8"))
    called = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "_call"
        and isinstance(node.args[0], ast.Constant)
    }
    assert called == {"unshare", "mount", "syscall", "prctl", "capset"}  # "syscall" is mount_setattr
    assert called - {"syscall"} <= ISOLATION_CALLS


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_a_unit_runs_as_a_user_that_is_made_for_it_and_writes_where_that_user_may(unit: Path) -> None:
    values = directives(unit)
    (user,) = values["User"]
    assert re.search(rf"^u {user} ", (UNITS / "quorate.sysusers").read_text(encoding="utf-8"), re.M)
    folders = re.findall(
        rf"^d (\S+) +0700 {user} {user} -$", (UNITS / "quorate.tmpfiles").read_text(encoding="utf-8"), re.M
    )
    of_the_kernel = {KERNELS_REPORTS} if unit.name == "quorate-aggregator.service" else set()
    assert set(values["ReadWritePaths"][0].split()) <= set(folders) | of_the_kernel


def test_an_aggregator_writes_nothing_but_the_kernels_reports_and_has_the_one_capability_that_it_takes() -> None:
    unit = directives(UNITS / "quorate-aggregator.service")
    assert unit["ReadWritePaths"] == [KERNELS_REPORTS]
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ["CAP_DAC_OVERRIDE"]
    assert not {key for key in unit if key.endswith("Directory")}


def test_a_daemon_is_not_started_again_after_what_does_not_mend_itself() -> None:
    errors = (
        ConfigError("x"),
        IdentityError("x"),
        SupersededError("x"),
        IdentityClonedError("x"),
        CertificateRevokedError("x"),
    )
    unit = directives(UNITS / "quorate-client.service")
    assert unit["RestartPreventExitStatus"] == [" ".join(str(exit_code(error)) for error in errors)]
    assert unit["OOMPolicy"] == directives(UNITS / "quorate-server.service")["OOMPolicy"] == ["continue"]


def test_timers_start_the_backups_of_both_sides() -> None:
    for side in ("server", "client"):
        timer = ConfigParser(strict=False)
        timer.optionxform = str  # type: ignore[assignment,method-assign]
        timer.read(UNITS / f"quorate-{side}-backup.timer")
        assert timer["Timer"]["Persistent"] == "yes"
        analyze("calendar", timer["Timer"]["OnCalendar"])
        command = directives(UNITS / f"quorate-{side}-backup.service")["ExecStart"]
        assert command == [f"/opt/quorate/current/bin/quorate-{side} backup /var/backups/quorate-{side}"]
