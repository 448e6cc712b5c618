"""What a round of the demo's study takes with four real sites, protected in one way and another."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.rounds import completed, operator_of
from demo import hospitals
from demo.consortium import Consortium

DEMO = Path(hospitals.__file__).parent


@dataclass(frozen=True)
class Way:
    """How a study is protected: its mode, and whether an attested machine does the server's part."""

    mode: str
    is_attested: bool = False


def medians_s(ways: Mapping[str, Way], rounds: int, warm_up: int) -> dict[str, float]:
    """Seconds of a round, by the name of each way; one run of so many rounds for each, on one consortium.

    Args:
        warm_up: Rounds at the beginning that are not looked at.
    """
    text = (DEMO / "study-without-noise.toml").read_text(encoding="utf-8").replace("count = 20", f"count = {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tables = hospitals.write(root / "data")
        (root / "schema.toml").write_bytes((DEMO / "schema.toml").read_bytes())
        with Consortium(root) as consortium:
            consortium.found()
            section = consortium.start_aggregator() if any(way.is_attested for way in ways.values()) else ""
            consortium.start_server()
            modes = tuple(sorted({way.mode for way in ways.values()}))
            consortium.set_up_sites(tables, DEMO / "schema.toml", protection=modes)
            consortium.allow_software_evidence()
            for name in tables:
                consortium.start_site(name)
            return {
                name: _median_s(consortium, name, _study(text, name, way, section), warm_up)
                for name, way in ways.items()
            }


def _study(text: str, name: str, way: Way, section: str) -> str:
    named = text.replace('"malignancy-without-noise"', f'"{name}"').replace('mode = "secagg"', f'mode = "{way.mode}"')
    return named + section if way.is_attested else named


def _median_s(consortium: Consortium, name: str, study: str, warm_up: int) -> float:
    file = consortium.root / f"{name}.toml"
    file.write_text(study, encoding="utf-8")
    consortium.operator("study", "publish", file)
    consortium.approve(name)
    with operator_of(consortium) as operator:
        view = completed(operator, operator.start(name).run)
    return statistics.median(sum(result.phase_seconds.values()) for result in view.results[warm_up:])
