"""What befalls a site's machine is one sentence with what to do, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quorate.errors import EXIT_OTHER
from quorate_client.cli import app
from quorate_client.site.folder import SiteFolder
from tests.client.command_kit import runner
from tests.dying import closed_folder, is_refused_to_nobody


def test_a_folder_of_another_user_is_told_by_what_reads_it_and_not_as_wrong_usage() -> None:
    with closed_folder() as folder:
        assert is_refused_to_nobody(lambda: app(["status", "--state", str(folder)], standalone_mode=False), OSError)


def test_a_file_that_cannot_be_read_is_named_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SiteFolder(tmp_path / "site")
    folder.create()
    (folder.keys / "identity.json").mkdir()
    done = runner(capsys, monkeypatch, folder)("status", "--json")
    assert done.code == EXIT_OTHER
    error = json.loads(done.err)["error"]
    assert error["code"] == "storage_unusable"
    assert str(folder.keys / "identity.json") in error["what"]
