"""The charts, rendered and linted by Helm's own code: what they put into a cluster, and what values they refuse."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quorate_client.approval.policy import Policy
from quorate_client.site.config import Config
from quorate_server.consortium.config import ServerConfig

try:
    from helm_python import HelmValuesError, chart
except ImportError:
    pytest.skip("NOT TESTED: the package helm-python-sdk is not installed", allow_module_level=True)

CHARTS = Path(__file__).parents[2] / "deploy" / "helm"
NAMES = ("quorate-server", "quorate-site")
WITH_POSTGRESQL = {
    "database": {"existingSecret": "pg", "cidr": "10.0.0.5/32"},
    "network": {"callers": ["192.0.2.0/24"]},
}
THROUGH_A_PROXY = {
    "proxy": "http://user:secret@proxy.example:3128",
    "isolation": {"seccompProfile": "profiles/quorate-site.json"},
}
CASES = (
    ("quorate-server", {}),
    ("quorate-server", WITH_POSTGRESQL),
    ("quorate-site", {}),
    ("quorate-site", THROUGH_A_PROXY),
)


def rendered(name: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    with chart.Chart.load(CHARTS / name) as loaded:
        loaded.validate_schema(values)
        texts = loaded.render(values, name="trial", namespace="heart")
    return [found for file, text in texts.items() if file.endswith(".yaml") for found in yaml.safe_load_all(text)]


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    spec = of_kind(objects, "StatefulSet")["spec"]["template"]["spec"]
    yield from spec["initContainers"]
    yield from spec["containers"]


@pytest.mark.parametrize("name", NAMES)
def test_helm_finds_nothing_wrong_with_a_chart(name: str) -> None:
    found = chart.lint(CHARTS / name)
    assert found["errors"] == []
    assert {message["error"] for message in found["messages"]} <= {"icon is recommended"}


@pytest.mark.parametrize(("name", "values"), CASES)
def test_a_pod_can_do_nothing_that_it_does_not_need(name: str, values: dict[str, Any]) -> None:
    objects = rendered(name, values)
    # No role, no binding, no token: the pod has nothing to say in the cluster.
    kinds = {one["kind"] for one in objects}
    assert kinds <= {"StatefulSet", "Service", "ServiceAccount", "ConfigMap", "Secret", "NetworkPolicy"}
    spec = of_kind(objects, "StatefulSet")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
    for one in containers(objects):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize(("name", "values"), CASES)
def test_the_kubelet_asks_the_metrics_port_and_only_monitoring_reaches_it(name: str, values: dict[str, Any]) -> None:
    objects = rendered(name, values)
    *_, daemon = containers(objects)
    assert daemon["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert daemon["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    ingress = of_kind(objects, "NetworkPolicy")["spec"]["ingress"]
    (source,) = next(rule["from"] for rule in ingress if rule["ports"] == [{"port": "metrics"}])
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


def test_a_site_lets_nobody_in_and_calls_only_its_server_or_proxy() -> None:
    policy = of_kind(rendered("quorate-site", {}), "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "metrics"}]]
    names, out = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert out == {"ports": [{"port": 8443}], "to": [{"ipBlock": {"cidr": "192.0.2.10/32"}}]}


def test_a_server_on_sqlite_calls_nobody_and_one_on_postgresql_calls_its_database() -> None:
    assert of_kind(rendered("quorate-server", {}), "NetworkPolicy")["spec"]["egress"] == []
    policy = of_kind(rendered("quorate-server", WITH_POSTGRESQL), "NetworkPolicy")["spec"]
    assert policy["egress"][1]["to"] == [{"ipBlock": {"cidr": "10.0.0.5/32"}}]
    assert policy["ingress"][0]["from"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]


def test_the_servers_configuration_is_one_that_a_server_reads(tmp_path: Path) -> None:
    url = tmp_path / "url"
    url.write_text("postgresql+psycopg://server:secret@db/quorate\n", encoding="utf-8")
    text = of_kind(rendered("quorate-server", WITH_POSTGRESQL), "ConfigMap")["data"]["server.toml"]
    assert "secret" not in text
    (tmp_path / "server.toml").write_text(text.replace("/run/database/url", str(url)), encoding="utf-8")
    config = ServerConfig.read(tmp_path)
    assert config.engine_url == "postgresql+psycopg://server:secret@db/quorate"
    assert config.metrics_listen == "0.0.0.0:9464"


def test_a_sites_configuration_and_policy_are_ones_that_a_site_reads() -> None:
    objects = rendered("quorate-site", THROUGH_A_PROXY)
    config = Config.model_validate(tomllib.loads(of_kind(objects, "Secret")["stringData"]["config.toml"]))
    assert config.proxy == "http://user:secret@proxy.example:3128"
    Policy.model_validate(tomllib.loads(of_kind(objects, "ConfigMap")["data"]["policy.toml"]))
    # The proxy's password stands in the secret and nowhere else.
    rest = [one for one in objects if one["kind"] != "Secret"]
    assert "user:secret" not in json.dumps(rest)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("quorate-server", {"replicas": 2}),
        ("quorate-server", {"consortium": "Heart!"}),
        ("quorate-server", {"settings": {"database_url": "postgresql://server:secret@db/quorate"}}),
        ("quorate-server", {"database": {"existingSecret": "pg"}}),
        ("quorate-site", {"proxy": "https://proxy.example:3128"}),
        ("quorate-site", {"server": {"cidr": "quorate.example.org", "port": 8443}}),
        ("quorate-site", {"settings": {"metrics_listen": "0.0.0.0:1"}}),
    ],
)
def test_values_that_would_not_work_are_refused_before_anything_is_installed(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(HelmValuesError):
        rendered(name, values)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_explained_in_the_schema_and_has_its_place_there(name: str) -> None:
    schema = json.loads((CHARTS / name / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHARTS / name / "values.yaml").read_text(encoding="utf-8"))
    assert set(values) == set(schema["properties"]) - {"global"}
    for key, part in schema["properties"].items():
        for where, one in [(key, part), *((f"{key}.{inner}", p) for inner, p in part.get("properties", {}).items())]:
            assert one.get("description") or one.get("properties"), where
