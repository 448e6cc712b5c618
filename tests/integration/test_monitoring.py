"""What an ops team sees: a live consortium, watched by a real Prometheus with our rules and dashboards."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.consortium.processes import eventually
from tests.deploy.prometheus_tools import GRAFANA, PROMETHEUS, checked, load_renderer, tool
from tests.integration.crash_kit import SITES, CrashTest
from tests.integration.prometheus_kit import Monitoring, page

pytestmark = pytest.mark.integration

DASHBOARDS = ("consortium", "site", "privacy")
SITE_DOWN, SITES_MISSING = ("QuorateSiteDown", "east"), ("QuorateSitesMissing", "server")
VARIABLES = {"$__rate_interval": "60s", "$__range": "1h", "$instance": ".*"}
_SELECTOR = re.compile(r"\b((?:quorate_|process_)[a-zA-Z0-9_:]+|ALERTS)(\{[^}]*\})?")
_LABEL = re.compile(r"\{\{(\w+)\}\}")
UNNAMED = "quorate_client_dataset_info"
"""Is there only where a policy lets names be told."""


def panels(name: str) -> list[dict[str, Any]]:
    dashboard = json.loads((GRAFANA / "dashboards" / f"{name}.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


@pytest.fixture
def watched(found: Callable[..., CrashTest], tmp_path: Path) -> tuple[CrashTest, Monitoring]:
    """A consortium of which all is connected and scraped."""
    for name in ("prometheus", "prometheus-alertmanager", "promtool"):
        tool(name)
    consortium = found()
    policy = consortium.sites["west"].folder / "policy.toml"
    policy.write_text("dataset_names_in_metrics = true\n" + policy.read_text())
    monitoring = Monitoring(consortium, tmp_path / "prometheus")
    consortium.start()
    monitoring.start()
    eventually(lambda: len(monitoring.query("up == 1")) == len(SITES) + 1, "all daemons to be scraped")
    return consortium, monitoring


def test_a_killed_site_raises_alerts_until_it_is_back_and_every_dashboard_finds_its_series(
    watched: tuple[CrashTest, Monitoring],
) -> None:
    consortium, monitoring = watched
    assert monitoring.firing().isdisjoint({SITE_DOWN, SITES_MISSING})
    for address in monitoring.daemons.values():
        assert page(address, "/healthz") == (200, "ok\n")
        status, findings = page(address, "/readyz")
        assert (status, "failed" in findings) == (200, False), findings

    consortium.sites["east"].running.kill()
    run = consortium.run("patient")  # waits for the site that is gone
    monitoring.await_alerts(SITE_DOWN, SITES_MISSING)
    require_series(monitoring, "ALERTS")
    consortium.start_site("east")
    monitoring.await_end_of(SITE_DOWN, SITES_MISSING)
    consortium.await_end(run)

    for address in monitoring.daemons.values():
        _, metrics = page(address, "/metrics")
        checked("promtool", "check", "metrics", standard_input=metrics)
    eventually(lambda: monitoring.query("quorate_server_rounds_total > 0"), "the rounds to be scraped")
    for name in DASHBOARDS:
        for panel in panels(name):
            for target in panel["targets"]:
                require_answer(monitoring, filled(target["expr"]), target["legendFormat"])
    for side in ("server", "site"):
        for rule in re.findall(r"record: (\S+)", (PROMETHEUS / "rules" / f"{side}.yml").read_text()):
            monitoring.query(rule)
    assert_drawn(monitoring)


def require_series(monitoring: Monitoring, selector: str) -> None:
    assert monitoring.series(selector), f"no series of a real run fits {selector}"


def require_answer(monitoring: Monitoring, query: str, legend: str) -> None:
    """Prometheus understands the query, each metric in it is there, and so is each label of the legend.

    The answer itself may be empty: nothing was refused here, and nothing has a limit.
    """
    for name, selector in _SELECTOR.findall(query):
        require_series(monitoring, name + selector)
    for series in monitoring.query(query):
        assert set(_LABEL.findall(legend)) <= set(series["metric"]), (query, legend)


def assert_drawn(monitoring: Monitoring) -> None:
    """What the renderer draws of the site's dashboard is not a page of empty panels."""
    render, now = load_renderer(), time.time()
    source = render.Source(f"http://{monitoring.address}", now - 60, now)
    dashboard = json.loads((GRAFANA / "dashboards" / "site.json").read_text())
    figure = render.render(dashboard, source)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {panel["title"] for panel in panels("site")} <= set(texts)
    assert texts.count("no data") <= 3  # refusals, transfers, downloads: a good day has none
    assert "connected" in texts
