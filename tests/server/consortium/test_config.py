from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import AlreadyExistsError, ConfigError
from quorate_server.consortium.config import ServerConfig, split_address

MINIMAL = 'consortium = "north-sea"\naddress = "server.example.org:8443"\n'


def write(folder: Path, text: str) -> Path:
    (folder / "server.toml").write_text(text)
    return folder


def test_a_minimal_file_gives_the_documented_defaults(tmp_path: Path) -> None:
    config = ServerConfig.read(write(tmp_path, MINIMAL))
    assert (config.listen, config.metrics_listen) == ("0.0.0.0:8443", "127.0.0.1:9464")
    assert (config.heartbeat_s, config.silent_after_s, config.upload_slots) == (2.0, 6.0, 16)
    assert (config.certificate_days, config.invitation_days, config.guest_apps) == (30, 7, ())
    assert config.engine_url == f"sqlite:///{tmp_path / 'server.sqlite'}"
    assert (config.ca_dir, config.spool_dir) == (tmp_path / "ca", tmp_path / "spool")
    assert config.public_host == "server.example.org"


def test_a_created_file_is_read_back_and_private(tmp_path: Path) -> None:
    made = ServerConfig.create(tmp_path / "s", consortium="north-sea", address="[::1]:8443", listen="[::]:8443")
    assert made == ServerConfig.read(tmp_path / "s")
    assert made.public_host == "::1"
    assert (tmp_path / "s" / "server.toml").stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)
    with pytest.raises(AlreadyExistsError):
        ServerConfig.create(tmp_path, consortium="other", address="h:1", listen="h:1")
    assert (tmp_path / "server.toml").read_text() == MINIMAL


def test_an_unknown_key_stops_the_start_and_is_named_with_file_and_expectation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.read(write(tmp_path, MINIMAL + "uploadslots = 4\n"))
    message = str(caught.value)
    assert str(tmp_path / "server.toml") in message
    assert "uploadslots: not a key of this file" in message
    assert "upload_slots" in caught.value.expected


def test_the_state_folder_cannot_be_redirected_from_inside_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="state_dir: not a key"):
        ServerConfig.read(write(tmp_path, MINIMAL + 'state_dir = "/elsewhere"\n'))


@pytest.mark.parametrize(
    "line",
    [
        'listen = "8443"',
        'listen = ":8443"',
        'listen = "host:70000"',
        'listen = "::1:8443"',
        "heartbeat_s = 0",
        "upload_slots = 0",
        "certificate_days = 0",
        'guest_apps = ["os"]',
        'log_level = "loud"',
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.read(write(tmp_path, MINIMAL + line + "\n"))
    assert line.split(" ")[0] in caught.value.got


@pytest.mark.parametrize("address", ["https://server:8443", "server:0", "server", "sérver:8443", "a b:1"])
def test_an_address_that_sites_could_not_dial_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        ServerConfig.read(write(tmp_path, f'consortium = "north-sea"\naddress = "{address}"\n'))


def test_silence_must_be_longer_than_a_heartbeat(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="silent_after_s"):
        ServerConfig.read(write(tmp_path, MINIMAL + "heartbeat_s = 6.0\n"))


def test_a_missing_or_broken_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quorate-server init"):
        ServerConfig.read(tmp_path)
    with pytest.raises(ConfigError, match="is not TOML"):
        ServerConfig.read(write(tmp_path, "consortium"))


def test_the_metrics_endpoint_can_be_switched_off(tmp_path: Path) -> None:
    assert ServerConfig.read(write(tmp_path, MINIMAL + 'metrics_listen = ""\n')).metrics_listen == ""


def test_an_ipv6_address_is_split_without_its_brackets() -> None:
    assert split_address("[2001:db8::1]:443") == ("2001:db8::1", 443)


def test_the_databases_url_may_lie_in_a_file_and_then_stands_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    line = f'database_url_file = "{secret}"\n'
    with pytest.raises(ConfigError, match="Cannot read"):
        ServerConfig.read(write(tmp_path, MINIMAL + line))
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        ServerConfig.read(tmp_path)
    secret.write_text("postgresql+psycopg://u:p@db/x\n")
    assert ServerConfig.read(tmp_path).engine_url == "postgresql+psycopg://u:p@db/x"
    with pytest.raises(ConfigError, match="both database_url and database_url_file"):
        ServerConfig.read(write(tmp_path, MINIMAL + line + 'database_url = "sqlite:///x"\n'))
