"""Prometheus' own programs, where this machine has them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"


def tool(name: str) -> str:
    """Where a program is. Skips the test where it is not; pytest's summary says so."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(
            f"NOT CHECKED: {name} is not installed (Debian: apt-get install prometheus prometheus-alertmanager)"
        )
    return found


def checked(name: str, *arguments: str | Path, folder: Path = PROMETHEUS, standard_input: str | None = None) -> str:
    """What a program says that finds nothing wrong."""
    done = subprocess.run(
        [tool(name), *(str(word) for word in arguments)],
        cwd=folder,
        input=standard_input,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def load_renderer() -> ModuleType:
    """``deploy/grafana/render.py``, which is a program and in no package."""
    spec = importlib.util.spec_from_file_location("render", GRAFANA / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["render"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
