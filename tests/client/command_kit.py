"""The administrator's commands, as a shell runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from quorate_client.cli import main
from quorate_client.site.folder import SiteFolder


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: SiteFolder) -> Run:
    """Runs a command on a site's folder."""
    monkeypatch.setenv("QUORATE_STATE", str(folder.root))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return Result(int(caught.value.code or 0), output.out, output.err)

    return call
