"""What befalls a server's machine is one sentence with what to do, and an exit code; no traceback, no password."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from quorate.errors import EXIT_INPUT, EXIT_OTHER, ConfigError, StorageError
from quorate.process.terminal import TRACEBACK
from quorate_server.cli import app, main
from quorate_server.cli.failures import machine_errors
from quorate_server.consortium.ca import Authority
from quorate_server.consortium.config import ServerConfig
from tests.dying import closed_folder, is_refused_to_nobody
from tests.patience import PATIENCE_S

SECRET = "topsecret"


@pytest.fixture
def server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "server"
    said(capsys, 0, "init", folder, "--consortium", "heart", "--address", "localhost:8443")
    return folder


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str | Path) -> str:
    """What a command prints that ends with this exit code."""
    ended: int | str | None = 0
    try:
        main([str(word) for word in words])
    except SystemExit as exit_:
        ended = exit_.code or 0
    output = capsys.readouterr()
    assert ended == code, output
    assert "Traceback" not in output.err
    assert SECRET not in output.out + output.err
    return output.out + output.err


def append(server: Path, line: str) -> None:
    with (server / "server.toml").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def test_a_damaged_database_is_named_and_stays_as_it_is(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = server / "server.sqlite"
    database.write_bytes(b"garbage" * 1000)
    assert "server.sqlite is damaged" in said(capsys, 1, "operator", "list", "--state", server)
    assert "BROKEN database: The server's database" in said(capsys, 1, "doctor", "--state", server)
    assert database.read_bytes() == b"garbage" * 1000


def test_a_database_that_is_down_is_told_without_its_password(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(server, f'database_url = "postgresql+psycopg://u:{SECRET}@127.0.0.1:1/x"')
    text = said(capsys, 1, "operator", "list", "--state", server)
    assert "cannot be reached" in text
    assert "Connection refused" in text


@pytest.mark.parametrize("url", [f"nonsense {SECRET}", f"mysql://u:{SECRET}@h/x", f"oracle+nothing://u:{SECRET}@h/x"])
def test_a_url_of_no_database_is_wrong_input(server: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    append(server, f'database_url = "{url}"')
    assert "Expected postgresql+psycopg://" in said(capsys, 2, "operator", "list", "--state", server)


def test_a_file_in_the_place_of_a_folder_is_named(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = server / "server.toml" / "new"
    text = said(capsys, 1, "init", place, "--consortium", "heart", "--address", "localhost:8443")
    assert f"{place} cannot be used. Got Not a directory" in text


def test_what_belongs_to_another_user_is_told_with_its_owner_and_not_as_wrong_input() -> None:
    with closed_folder() as folder:
        arguments = ["operator", "list", "--state", str(folder)]
        assert is_refused_to_nobody(lambda: ServerConfig.read(folder), StorageError)
        assert is_refused_to_nobody(lambda: Authority.load(folder, "heart"), StorageError)
        # Wrong usage would be click's own exception: the option looks at the folder too.
        assert is_refused_to_nobody(lambda: app(arguments, standalone_mode=False), StorageError)


def test_a_server_that_could_not_be_founded_leaves_nothing_that_keeps_the_next_attempt_from_it(tmp_path: Path) -> None:
    """Its database is too large for this process; on a full disk the same happens."""
    limits = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limits += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    words = ["init", str(tmp_path / "new"), "--consortium", "heart", "--address", "localhost:8443"]
    program = limits + f"from quorate_server.cli import main; main({words!r})"
    command = [sys.executable, "-B", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_OTHER, 1), done.stderr
    assert list((tmp_path / "new").iterdir()) == []


def test_a_missing_module_of_ours_is_not_taken_for_a_driver() -> None:
    with pytest.raises(ModuleNotFoundError), machine_errors():
        import nothing_of_that_name  # type: ignore[import-not-found]  # noqa: F401


def test_other_errors_pass() -> None:
    with pytest.raises(StorageError), machine_errors():
        raise StorageError("x")
    with pytest.raises(ConfigError), machine_errors():
        raise ConfigError("x")


def test_a_mistake_of_ours_is_one_line_unless_somebody_asks_for_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("quorate_server.cli.app", broken)
    text = said(capsys, 1, "doctor")
    assert text.count("\n") == 1
    assert "Error [internal]: ZeroDivisionError at test_failures.py:" in text
    assert TRACEBACK in text


@pytest.mark.parametrize("key", ["listen", "metrics_listen"])
def test_a_port_that_is_taken_ends_the_daemon_with_one_line(server: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"listen": "127.0.0.1:0", "metrics_listen": ""} | {key: f"127.0.0.1:{taken.getsockname()[1]}"}
        lines = (server / "server.toml").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("listen")]
        made = [f'{name} = "{value}"' for name, value in ports.items()]
        (server / "server.toml").write_text("\n".join([*kept, *made]) + "\n", encoding="utf-8")
        program = "from quorate_server.cli import main; main()"
        command = [sys.executable, "-c", program, "run", "--state", str(server)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == EXIT_INPUT
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("quorate-server: ")]
    assert f"cannot listen on {ports[key]}" in line
    assert key in line
    assert "Traceback" not in done.stderr
