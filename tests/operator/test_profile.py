from __future__ import annotations

import time
from pathlib import Path

import pytest

from quorate.errors import CertificateExpiredError, ConfigError
from quorate_operator.profile import Profile, find_profile
from quorate_server.cli.founding import found
from quorate_server.consortium.ca import OPERATOR_DAYS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A credential as the server writes it."""
    return found(
        tmp_path / "server", consortium="north-sea", address="server:8443", listen="0.0.0.0:8443", now=time.time()
    )


def test_a_credential_of_the_server_is_read_and_shows_no_key(folder: Path) -> None:
    profile = Profile.load(folder, time.time())
    assert (profile.consortium, profile.address, profile.operator) == ("north-sea", "server:8443", "operator")
    assert "PRIVATE" not in repr(profile)


def test_an_expired_credential_is_told_apart_from_a_dead_server(folder: Path) -> None:
    with pytest.raises(CertificateExpiredError, match="operator add"):
        Profile.load(folder, time.time() + OPERATOR_DAYS * 86_400 + 1)


def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    (folder / "operator.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Profile.load(folder, time.time())


@pytest.mark.parametrize("name", ["profile.json", "ca.pem", "operator.pem", "operator.key"])
def test_a_credential_that_is_not_whole_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=name):
        Profile.load(folder, time.time())


@pytest.mark.parametrize("content", ["", "{}", '{"format": "quorate.profile/2"}', "[]"])
def test_a_profile_of_another_form_is_refused(folder: Path, content: str) -> None:
    (folder / "profile.json").write_text(content)
    with pytest.raises(ConfigError, match="not an operator's credential"):
        Profile.load(folder, time.time())


def test_the_named_folder_wins_then_the_one_here_then_the_one_at_home(tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    with pytest.raises(ConfigError, match="QUORATE_PROFILE"):
        find_profile(None, here, home)
    at_home = home / ".config" / "quorate" / "operator"
    for folder in (at_home, here / "operator"):
        folder.mkdir(parents=True)
        (folder / "profile.json").touch()
        assert find_profile(None, here, home) == folder
    assert find_profile(tmp_path / "named", here, home) == tmp_path / "named"
