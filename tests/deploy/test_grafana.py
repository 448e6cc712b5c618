"""The dashboards are ones that Grafana can load: of metrics that there are, with labels that these can have.

``tests/integration/test_monitoring.py`` asks a real Prometheus every query of theirs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from quorate.errors import (
    BudgetExhaustedError,
    PrivacyRefusedError,
    PrivacyUnsupportedError,
    ProtectionRefusedError,
    SyntheticRefusedError,
)
from quorate.process.metrics import Metric
from quorate_client.daemon.metrics import CLIENT_METRICS
from quorate_server.reporting.metrics import SERVER_METRICS
from tests.deploy.prometheus_tools import GRAFANA, load_renderer

FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
KNOWN: dict[str, Metric] = {
    metric.name + end: metric
    for metric in (*SERVER_METRICS, *CLIENT_METRICS)
    for end in ("", "_bucket", "_sum", "_count")
}
ADDED = {"instance", "job", "le"}
"""Labels that Prometheus adds, or every histogram has."""

by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def dashboard(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def queries(path: Path) -> list[str]:
    return [target["expr"] for panel in panels(path) for target in panel["targets"]]


def test_there_is_one_for_the_consortium_one_for_a_site_and_one_for_its_privacy() -> None:
    found = [dashboard(path) for path in FILES]
    assert [each["uid"] for each in found] == ["quorate-consortium", "quorate-privacy", "quorate-site"]


@by_file
def test_panels_lie_beside_and_not_upon_each_other(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(path)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert taken.isdisjoint(cells), panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard(path)["panels"]]
    assert len(ids) == len(set(ids))


@by_file
def test_every_panel_has_a_title_and_asks_the_chosen_prometheus_for_the_chosen_daemons(path: Path) -> None:
    for panel in panels(path):
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            selectors = re.findall(r"\b(?:quorate|process)_\w+|\bALERTS\b", target["expr"])
            assert selectors
            assert target["expr"].count('instance=~"$instance"') == len(selectors)


@by_file
def test_queries_are_of_metrics_and_label_values_that_there_are(path: Path) -> None:
    for query in queries(path):
        for name, selector in re.findall(r"\b(quorate_(?:server|client)_\w+)\{([^}]*)\}", query):
            assert name in KNOWN, name
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                if label not in ADDED:
                    assert set(values.split("|")) <= set(KNOWN[name].labels[label]), query
        for words in re.findall(r"\bby \(([^)]*)\)", query):
            labels = {word.strip() for word in words.split(",")} - ADDED
            assert all(
                labels <= set(KNOWN[name].labels) for name in re.findall(r"quorate_(?:server|client)_\w+", query)
            )


@by_file
def test_the_renderer_knows_every_kind_of_panel_and_every_unit(path: Path) -> None:
    render = load_renderer()
    for panel in panels(path):
        assert panel["type"] in render.DRAWN
        assert render.written(0.5, panel["fieldConfig"]["defaults"]["unit"])


def test_the_panel_of_what_a_site_refused_for_privacy_counts_each_such_code() -> None:
    (refused,) = (each for each in queries(GRAFANA / "dashboards" / "privacy.json") if PrivacyRefusedError.code in each)
    asked = (BudgetExhaustedError, PrivacyUnsupportedError, ProtectionRefusedError, SyntheticRefusedError)
    assert [error.code for error in asked if error.code not in refused] == []


def test_budgets_are_on_no_dashboard_of_the_server() -> None:
    assert not any("quorate_client" in query for query in queries(GRAFANA / "dashboards" / "consortium.json"))
    assert not any("epsilon" in metric.name for metric in SERVER_METRICS)


def test_grafana_is_told_of_the_source_and_of_the_dashboards() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "quorate.yml").read_text())
    assert [provider["type"] for provider in providers["providers"]] == ["file"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0042, "s", "4.2 ms"),
        (150.0, "s", "2.5 min"),
        (0.25, "percentunit", "25 %"),
        (3 * 1024**2, "bytes", "3 MiB"),
        (1500.0, "Bps", "1.5 kB/s"),
        (float("inf"), "short", "no limit"),
        (float("nan"), "short", "–"),
    ],
)
def test_the_renderer_writes_a_figure_as_people_do(value: float, unit: str, text: str) -> None:
    assert load_renderer().written(value, unit) == text
