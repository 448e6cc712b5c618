"""A Prometheus and an Alertmanager beside a consortium of processes, with our rules, that look often."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from demo.consortium import free_port, write_settings
from tests.consortium.processes import Daemon, eventually
from tests.consortium.running import Consortium
from tests.deploy.prometheus_tools import PROMETHEUS, tool
from tests.patience import PATIENCE_S

LOOK_EVERY = "500ms"


def page(address: str, path: str) -> tuple[int, str]:
    """What is answered at a path, whatever the status."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()


class Monitoring:
    """Scrapes the server and the sites of a consortium that was not started yet.

    The rules are those that we ship, without the time that an alert waits: nobody waits for that in a test.
    """

    def __init__(self, consortium: Consortium, folder: Path) -> None:
        self.daemons = {name: f"127.0.0.1:{free_port()}" for name in ("server", *consortium.sites)}
        write_settings(consortium.server_dir / "server.toml", {"metrics_listen": json.dumps(self.daemons["server"])})
        for name, site in consortium.sites.items():
            write_settings(site.folder / "config.toml", {"metrics_listen": json.dumps(self.daemons[name])})
        folder.mkdir()
        self._consortium, self._folder = consortium, folder
        self.address, self.alertmanager = (f"127.0.0.1:{free_port()}" for _ in range(2))

    def start(self) -> None:
        """Start both and wait until they answer."""
        for side in ("server", "site"):
            rules = yaml.safe_load((PROMETHEUS / "rules" / f"{side}.yml").read_text())
            for rule in rules["groups"][0]["rules"]:
                rule.pop("for", None)
            (self._folder / f"{side}-rules.yml").write_text(yaml.safe_dump(rules))
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(self._configuration()))
        self._run(
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--rules.alert.resend-delay=1s",
        )
        self._run(
            "prometheus-alertmanager",
            f"--config.file={PROMETHEUS / 'alertmanager.yml'}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address={self.alertmanager}",
            "--cluster.listen-address=",
        )
        for address in (self.address, self.alertmanager):
            eventually(lambda address=address: _is_ready(address), f"{address} to be ready")

    def _run(self, name: str, *arguments: str) -> None:
        self._consortium.keep(Daemon(self._folder / f"{name}.log", tool(name), *arguments))

    def _configuration(self) -> dict[str, Any]:
        """As ours, but that it looks often and finds several sites."""
        ours = {side: yaml.safe_load((PROMETHEUS / f"{side}.yml").read_text()) for side in ("server", "site")}
        (server_job,), (site_job,) = (ours[side]["scrape_configs"] for side in ("server", "site"))
        named = [{"targets": [address], "labels": {"instance": name}} for name, address in self.daemons.items()]
        server_job["static_configs"], site_job["static_configs"] = named[:1], named[1:]
        return {
            "global": {"scrape_interval": LOOK_EVERY, "evaluation_interval": LOOK_EVERY},
            "rule_files": [str(self._folder / f"{side}-rules.yml") for side in ("server", "site")],
            "scrape_configs": [server_job, site_job],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [self.alertmanager]}]}]},
        }

    # --- what they say ---

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now. Fails where Prometheus does not understand it."""
        return self._ask("query", {"query": expression})["result"]  # type: ignore[no-any-return]

    def series(self, selector: str) -> list[dict[str, str]]:
        return self._ask("series", {"match[]": selector})  # type: ignore[no-any-return]

    def firing(self) -> set[tuple[str, str]]:
        """Name and daemon of each alert that Alertmanager was told of and that is not over."""
        _, text = page(self.alertmanager, "/api/v2/alerts")
        return {(each["labels"]["alertname"], each["labels"]["instance"]) for each in json.loads(text)}

    def await_alerts(self, *wanted: tuple[str, str]) -> None:
        eventually(lambda: self.firing().issuperset(wanted), f"the alerts {wanted}")

    def await_end_of(self, *alerts: tuple[str, str]) -> None:
        eventually(lambda: self.firing().isdisjoint(alerts), f"the end of the alerts {alerts}")

    def _ask(self, what: str, query: Mapping[str, str]) -> Any:
        _, text = page(self.address, f"/api/v1/{what}?{urllib.parse.urlencode(query)}")
        answer = json.loads(text)
        assert answer["status"] == "success", (query, answer)
        return answer["data"]


def _is_ready(address: str) -> bool:
    try:
        return page(address, "/-/ready")[0] == 200
    except OSError:
        return False
