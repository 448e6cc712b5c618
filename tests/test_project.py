"""The project's frame: what is pinned, generated, linked and imported is what it claims to be."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, Field

from docs.config_tables import UndocumentedKeyError, tables

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9A-Za-z.]+)")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(matches), "a line of constraints.txt is not NAME==VERSION: no local build, address or path may be in it"
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        text for name, texts in project["optional-dependencies"].items() if name != "postgresql" for text in texts
    ]
    return [Requirement(text) for text in (*project["dependencies"], *extras)]


def test_every_package_that_is_needed_is_pinned_within_its_supported_range() -> None:
    pinned = pins()
    for requirement in requirements():
        version = pinned.get(canonicalize_name(requirement.name), "not pinned")
        assert version in requirement.specifier, requirement.name


def test_the_reference_pages_are_those_that_the_code_gives() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_reference_page_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", copy)
    page = copy / "reference" / "errors.md"
    page.write_text(page.read_text(encoding="utf-8").replace("`disk_full`", "`disk_fool`"), encoding="utf-8")
    before = page.read_bytes()
    done = subprocess.run(
        [sys.executable, copy / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "-| `disk_fool`" in done.stdout
    assert "+| `disk_full`" in done.stdout
    assert page.read_bytes() == before


def test_a_key_without_an_explanation_cannot_be_documented() -> None:
    class Settings(BaseModel):
        explained: int = Field(default=1, description="what it is for")
        bare: int = 2

    with pytest.raises(UndocumentedKeyError, match=r"Settings\.bare"):
        tables(Settings)


def test_a_table_shows_bounds_defaults_and_sections() -> None:
    class Inner(BaseModel):
        """What the section is for."""

        share: float = Field(ge=0, lt=1, description="a | b")

    class Settings(BaseModel):
        names: tuple[str, ...] = Field(default=("b", "a"), max_length=3, description="some")
        inner: Inner | None = None

    text = tables(Settings)
    assert '| `names` | list of text; at most 3 entries | `["a", "b"]` | some |' in text
    assert "## `[inner]`\n\nWhat the section is for. May be left out." in text
    assert r"| `share` | number ≥ 0, < 1 | required | a \| b |" in text


def sources() -> Iterator[tuple[Path, set[str]]]:
    """Every module of the product with the top-level names of what it imports."""
    for side in ("protos", "server", "client"):
        for path in (ROOT / side).rglob("*.py"):
            names: set[str] = set()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
            yield path.relative_to(ROOT), names


@pytest.mark.parametrize(
    ("library", "importers"),
    [
        ("flwr", {"server/quorate_server/flower", "client/quorate_client/flower"}),
        ("dcap_qvl", {"protos/quorate/attestation/kinds/tdx.py"}),
        ("cbor2", {"protos/quorate/attestation/kinds/nitro.py"}),
        ("joserfc", {"protos/quorate/attestation/kinds/confidential_space.py"}),
        ("matplotlib", {"server/quorate_server/reporting/plots.py", "client/quorate_client/cli/explore.py"}),
        (
            "jinja2",
            {"server/quorate_server/reporting/report.py", "client/quorate_client/synthetic/report/page/page.py"},
        ),
    ],
)
def test_a_library_that_we_keep_at_arms_length_has_one_importer_on_each_side(library: str, importers: set[str]) -> None:
    found = {path for path, names in sources() if library in names}
    assert {str(path.parent) if library == "flwr" else str(path) for path in found} == importers


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("quorate_operator.cli", {"flwr", "numpy", "sqlalchemy", "torch", "matplotlib"}),
        ("quorate_server.daemon", {"torch", "matplotlib"}),
        ("quorate_client.daemon.daemon", {"flwr", "numpy", "torch", "opacus", "pandas"}),
        ("quorate_client.cli", {"dcap_qvl", "joserfc", "cbor2"}),
    ],
)
def test_a_program_does_not_load_what_it_does_not_need(module: str, unwanted: set[str]) -> None:
    probe = f"import {module}, sys; print(*sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_target_of_the_makefile_is_explained() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    declared = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert declared is not None
    explained = re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE)
    assert sorted(declared[1].replace("\\", "").split()) == sorted(explained)


def test_the_check_script_runs_everything_and_the_tests_last() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    targets = re.findall(r"^make .*?([a-z-]+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert targets == ["setup", "lint", "generated", "test-all"]
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_link_between_our_pages_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
