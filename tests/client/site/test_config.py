"""The site's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import ConfigError, StorageError
from quorate_client.site.config import Config, read_config
from tests.dying import closed_folder, is_refused_to_nobody


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert read_config(tmp_path / "config.toml") == Config()


def test_every_key_can_be_set(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        address = "quorate.example.org:8443"
        proxy = "http://user:secret@proxy.hospital:3128"
        metrics_listen = ""
        log_level = "debug"
        log_json = true
        keep_days = 2.5
        task_memory_mb = 4096
        """,
    )

    config = read_config(path)

    assert (config.address, config.metrics_listen, config.task_memory_mb) == ("quorate.example.org:8443", "", 4096)


def test_an_unknown_key_stops_the_start_naming_file_key_and_expectation(tmp_path: Path) -> None:
    path = written(tmp_path, 'metrics_listn = "127.0.0.1:1"\n')

    with pytest.raises(ConfigError) as caught:
        read_config(path)

    assert str(path) in caught.value.what
    assert "metrics_listn: unknown key, expected one of address," in caught.value.got


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('address = "somewhere"', "address"),
        ('proxy = "socks5://proxy:1"', "proxy"),
        ('log_level = "loud"', "log_level"),
        ("keep_days = 0", "keep_days"),
        ("keep_days = nan", "keep_days"),
        ("task_memory_mb = 1", "task_memory_mb"),
        ("metrics_listen = 9465", "metrics_listen"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(written(tmp_path, text))

    assert caught.value.got.startswith(f"{key}: ")


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(written(tmp_path, "log_level debug"))


def test_a_file_of_another_user_is_no_wrong_input_but_told_with_its_owner() -> None:
    with closed_folder() as folder:
        assert is_refused_to_nobody(lambda: read_config(folder / "config.toml"), StorageError)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()

    with pytest.raises(ConfigError, match="Cannot read"):
        read_config(tmp_path / "config.toml")
