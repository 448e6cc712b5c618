"""Which attester a machine gets, and what may be said of each on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import ConfigError
from quorate_server.aggregator.attesters.choice import attester_of
from quorate_server.aggregator.cli import app, main


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--attester", "tsm", "--key", "k"], "--key belongs to --attester software"),
        (["--attester", "software", "--endorsements", "e"], "--endorsements belongs to --attester tsm"),
        (["--attester", "tsm", "--audience", "a"], "--audience belongs to --attester confidential-space"),
        (["--attester", "none"], "no such attester"),
    ],
)
def test_an_option_of_another_attester_is_refused(arguments: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        app(["run", *arguments], standalone_mode=False)


def test_an_attester_that_this_machine_has_not_ends_the_start_with_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--attester", "confidential-space"])
    assert ended.value.code == ConfigError.exit_code
    assert "no container of Confidential Space" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="holds no key"):
        attester_of("software", str(tmp_path / "none"))
