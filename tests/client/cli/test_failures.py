"""What befalls a site's machine is one sentence with what to do, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quorate.errors import EXIT_OTHER
from quorate_client.site.folder import SiteFolder
from tests.client.command_kit import runner


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
