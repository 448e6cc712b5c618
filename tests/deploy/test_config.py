"""The sample configurations are ones that the daemons read, and say no more than there is."""

from __future__ import annotations

from pathlib import Path

from quorate_client.approval.policy import Policy
from quorate_client.site.config import Config, parse_toml, read_config
from quorate_server.consortium.config import ServerConfig

SAMPLES = Path(__file__).parents[2] / "deploy" / "config"


def test_the_servers_sample_is_read_by_the_server() -> None:
    config = ServerConfig.read(SAMPLES)
    assert (config.address, config.listen) == ("quorate.example.org:8443", "0.0.0.0:8443")
    assert config.metrics_listen.startswith("127.0.0.1:")
    assert config.log_format == "json"


def test_the_sites_samples_are_read_by_the_site() -> None:
    config = read_config(SAMPLES / "config.toml")
    assert config.proxy == "http://proxy.hospital.example:3128"
    assert config.metrics_listen == Config().metrics_listen
    path = SAMPLES / "policy.toml"
    policy = parse_toml(path.read_text(encoding="utf-8"), path, Policy)
    assert policy.require_isolation
    assert policy.protection == {"secagg"}


def test_keys_that_a_sample_has_as_a_comment_are_keys_that_there_are() -> None:
    for name, keys in (("server.toml", ServerConfig.model_fields), ("config.toml", Config.model_fields)):
        lines = (SAMPLES / name).read_text(encoding="utf-8").splitlines()
        commented = {line[2:].partition(" = ")[0] for line in lines if line.startswith("# ") and " = " in line}
        assert commented
        assert commented <= set(keys)
