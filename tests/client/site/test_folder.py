"""The site's folder: private, and one daemon's at a time."""

from __future__ import annotations

import pytest

from quorate.errors import WrongStateError
from quorate.process.private_files import write_private
from quorate_client.site.folder import SiteFolder


def test_all_of_it_is_private(folder: SiteFolder) -> None:
    folder.create()

    for path in (folder.root, folder.keys, folder.spool, folder.work, folder.log):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_private_file_is_readable_by_its_owner_only_and_replaced_whole(folder: SiteFolder) -> None:
    folder.create()
    path = folder.keys / "secret"
    write_private(path, b"one")
    write_private(path, b"two")

    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(folder.keys.iterdir()) == [path]


def test_a_second_daemon_on_the_same_folder_is_kept_out(folder: SiteFolder) -> None:
    folder.create()
    assert not folder.daemon_runs()

    with folder.held_by_this_daemon():
        assert folder.daemon_runs()
        with pytest.raises(WrongStateError, match="already runs"), folder.held_by_this_daemon():
            raise AssertionError("two daemons")

    assert not folder.daemon_runs()
