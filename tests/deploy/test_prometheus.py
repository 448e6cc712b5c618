"""The rules and configurations that we ship for Prometheus are sound, and each alert has its test and its page."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from quorate.process.metrics import Metric
from quorate_client.daemon.metrics import CLIENT_METRICS, Budget, ClientMetrics
from quorate_server.reporting.metrics import SERVER_METRICS, ServerMetrics
from tests.deploy.prometheus_tools import PROMETHEUS, ROOT, checked

SIDES = ("server", "site")
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
RUNBOOK = ROOT / "docs" / "guides" / "runbook.md"
PARTS = ("**Meaning.**", "**Likely causes.**", "**Type.**", "**Wake somebody?**")
SEVERITIES = {"critical", "warning", "info"}
PROGRAMS = {"quorate": "quorate_operator.cli", "quorate-server": "quorate_server.cli"}
PROGRAMS["quorate-client"] = "quorate_client.cli"


def rules(side: str) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / "rules" / f"{side}.yml").read_text())["groups"]
    return list(group["rules"])


def alerts(side: str) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules(side) if "alert" in rule}


ALERTS = {name: rule for side in SIDES for name, rule in alerts(side).items()}


def sections() -> dict[str, str]:
    """The runbook's sections by their headings."""
    _, *parts = re.split(r"^### (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("side", SIDES)
def test_promtool_finds_nothing_wrong_with_configuration_and_rules(side: str) -> None:
    assert "SUCCESS" in checked("promtool", "check", "config", f"{side}.yml")
    assert "SUCCESS" in checked("promtool", "check", "rules", f"rules/{side}.yml")


def test_every_alert_fires_where_it_has_to_and_not_where_it_must_not() -> None:
    checked("promtool", "test", "rules", *RULE_TESTS)


def test_alertmanager_can_be_configured_so() -> None:
    assert "SUCCESS" in checked("amtool", "check-config", "alertmanager.yml")


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: set[str] = set()
    quiet: set[str] = set()
    for path in RULE_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for test in case["alert_rule_test"]:
                (fires if test["exp_alerts"] else quiet).add(test["alertname"])
    assert fires == quiet == set(ALERTS)


def test_there_are_enough_alerts_and_each_leads_to_its_page() -> None:
    assert len(ALERTS) >= 15
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in SEVERITIES
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK.relative_to(ROOT)}#{name.lower()}"


def test_the_runbook_has_a_page_of_four_parts_for_each_alert_and_no_other() -> None:
    pages = sections()
    assert list(pages) == list(ALERTS)
    for name, page in pages.items():
        assert f"*{ALERTS[name]['labels']['severity']}.*" in page, name
        assert [part for part in PARTS if part not in page] == [], name


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", RUNBOOK.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.split()[0] in PROGRAMS]


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_of_ours_that_the_runbook_has_one_type_exists(line: str) -> None:
    program, *words = shlex.split(line)
    module = __import__(PROGRAMS[program], fromlist=["app"])
    command: Any = typer.main.get_command(module.app)
    while hasattr(command, "commands"):
        assert words, line
        command = command.commands[words.pop(0)]
    command.make_context(line, [re.sub(r"/var/\S+", "folder", word) for word in words], resilient_parsing=True)


def names(metrics: tuple[Metric, ...]) -> set[str]:
    """As rules may call them."""
    return {metric.name + end for metric in metrics for end in ("", "_bucket", "_sum", "_count")}


@pytest.mark.parametrize(("side", "metrics"), [("server", SERVER_METRICS), ("site", CLIENT_METRICS)])
def test_rules_use_metrics_that_there_are_and_labels_that_these_can_have(
    side: str, metrics: tuple[Metric, ...]
) -> None:
    recorded = {rule["record"] for rule in rules(side) if "record" in rule}
    known = {name: metric for metric in metrics for name in names((metric,))}
    for rule in rules(side):
        for name in re.findall(r"quorate_(?:server|client)[a-z0-9_:]*", rule["expr"]):
            assert name in known or name in recorded, name
        for name, selector in re.findall(r"(quorate_\w+)\{([^}]*)\}", rule["expr"]):
            for label, operator, values in re.findall(r'(\w+)(=~|!~|=|!=)"([^"]*)"', selector):
                for value in values.split("|") if "~" in operator else [values]:
                    assert value in known[name].labels[label], (rule, value)


@pytest.mark.parametrize("side", SIDES)
def test_promtool_finds_nothing_wrong_with_what_a_daemon_exposes(side: str) -> None:
    registry = CollectorRegistry()
    if side == "server":
        ServerMetrics(registry)
    else:
        made = ClientMetrics(registry)
        made.budgets_are(8.0, [Budget(1, "training", 1.0, 7.0)])
        made.datasets_are_named({1: "cells"})
    checked("promtool", "check", "metrics", standard_input=generate_latest(registry).decode())


@pytest.mark.parametrize("side", SIDES)
def test_a_sample_configuration_scrapes_where_the_daemon_listens_unless_told_otherwise(side: str) -> None:
    from quorate_client.site.config import Config
    from quorate_server.consortium.config import ServerConfig

    default = ServerConfig.model_fields["metrics_listen"].default if side == "server" else Config().metrics_listen
    (job,) = yaml.safe_load((PROMETHEUS / f"{side}.yml").read_text())["scrape_configs"]
    assert job["job_name"] == f"quorate-{side}"
    assert job["static_configs"] == [{"targets": [default]}]
