from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.errors import AlreadyExistsError, FrameError, InputError
from quorate.identity import SiteName
from quorate_operator.files import invitation_text, private_file, write_download
from quorate_operator.views import InvitationView


def test_an_invitation_file_has_the_agreed_form() -> None:
    invitation = InvitationView(
        "north-sea", "server:8443", SiteName("north"), b"CA\n", b"CERT\n", b"KEY\n", 1_800_000_000
    )
    assert json.loads(invitation_text(invitation)) == {
        "format": "quorate.invitation/1",
        "consortium": "north-sea",
        "address": "server:8443",
        "site": "north",
        "ca_pem": "CA\n",
        "certificate_pem": "CERT\n",
        "key_pem": "KEY\n",
        "expires_unix_s": 1_800_000_000,
    }


def test_a_private_file_is_private_from_its_first_byte_on(tmp_path: Path) -> None:
    path = tmp_path / "north.invitation.json"
    with private_file(path) as file:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        file.write("secret")
    assert path.read_text() == "secret"


def test_a_private_file_takes_no_others_place_and_leaves_nothing_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "north.invitation.json"
    with pytest.raises(RuntimeError), private_file(path):
        raise RuntimeError
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(AlreadyExistsError), private_file(path):
        pytest.fail("the block must not run")
    assert path.read_text() == "mine"
    with pytest.raises(InputError), private_file(tmp_path / "missing" / "file"):
        pytest.fail("the block must not run")


def test_a_download_replaces_the_old_file_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise FrameError("corrupted")

    with pytest.raises(FrameError):
        write_download(path, broken())
    assert path.read_bytes() == b"old"
    assert write_download(path, [b"ab", b"c"]) == 3
    assert path.read_bytes() == b"abc"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        write_download(tmp_path / "missing" / "model.npz", [b"x"])
