from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from quorate.errors import EXIT_INPUT, EXIT_OTHER
from quorate.identity import Role, Subject
from quorate_server.cli import main
from quorate_server.cli.founding import open_registry
from quorate_server.consortium.config import ServerConfig
from tests.server.door import door_in_thread

Command = Callable[..., tuple[int, str, str]]
INIT = ("--consortium", "north-sea", "--address", "localhost:8443")


@pytest.fixture
def quorate_server(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def test_init_makes_a_server_and_says_what_to_do_next(quorate_server: Command, tmp_path: Path) -> None:
    state = tmp_path / "server"
    code, out, err = quorate_server("init", state, *INIT)
    assert (code, err) == (0, "")
    assert f"quorate-server run --state {state}" in out
    assert "quorate site invite" in out
    config = ServerConfig.read(state)
    assert (config.consortium, config.address, config.listen) == ("north-sea", "localhost:8443", "0.0.0.0:8443")
    for secret in (state / "ca" / "ca.key", state / "operator" / "operator.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    certificate = x509.load_pem_x509_certificate((state / "operator" / "operator.pem").read_bytes())
    subject = Subject.of(certificate)
    assert subject == Subject("north-sea", Role.OPERATOR, "operator")
    with open_registry(config) as registry:
        registry.check_certificate(subject, certificate.serial_number)


def test_init_never_replaces_a_consortium(quorate_server: Command, tmp_path: Path) -> None:
    state = tmp_path / "server"
    quorate_server("init", state, *INIT)
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    code, out, err = quorate_server("init", state, "--consortium", "other", "--address", "localhost:1")
    assert (code, out) == (EXIT_INPUT, "")
    assert err.startswith("quorate-server: ")
    assert err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}


def test_init_with_a_wrong_value_leaves_nothing_behind(quorate_server: Command, tmp_path: Path) -> None:
    code, _, err = quorate_server("init", tmp_path / "server", "--consortium", "North Sea", "--address", "localhost")
    assert code == EXIT_INPUT
    assert "consortium" in err
    assert "address: must be HOST:PORT" in err
    assert list(tmp_path.iterdir()) == []


def test_run_names_a_state_folder_that_holds_no_server(
    quorate_server: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUORATE_SERVER_STATE", str(tmp_path))
    code, _, err = quorate_server("run")
    assert code == EXIT_INPUT
    assert str(tmp_path / "server.toml") in err


def test_operators_get_and_lose_credentials(quorate_server: Command, tmp_path: Path) -> None:
    state = tmp_path / "server"
    quorate_server("init", state, *INIT)
    assert quorate_server("operator", "add", "alice", "--state", state, "-o", tmp_path / "alice")[0] == 0
    assert sorted(path.name for path in (tmp_path / "alice").iterdir()) == [
        "ca.pem",
        "operator.key",
        "operator.pem",
        "profile.json",
    ]
    code, _, err = quorate_server("operator", "add", "bob", "--state", state, "-o", tmp_path / "alice")
    assert code == EXIT_INPUT
    assert "not empty" in err
    assert quorate_server("operator", "revoke", "alice", "--state", state)[0] == 0
    _, out, _ = quorate_server("operator", "list", "--state", state)
    alice, operator = out.splitlines()
    assert alice.startswith("alice  revoked")
    assert operator.startswith("operator  valid until")
    assert quorate_server("operator", "revoke", "alice", "--state", state)[0] == EXIT_INPUT


def test_the_doctor_finds_a_new_server_well(quorate_server: Command, tmp_path: Path) -> None:
    quorate_server("init", tmp_path / "server", *INIT, "--listen", "127.0.0.1:1")
    code, out, _ = quorate_server("doctor", "--state", tmp_path / "server")
    assert code == 0, out
    assert "BROKEN" not in out
    assert "the server is not running" in out


def test_the_doctor_finds_what_is_broken_and_says_what_to_do(quorate_server: Command, tmp_path: Path) -> None:
    state = tmp_path / "server"
    quorate_server("init", state, *INIT, "--listen", "127.0.0.1:1")
    quorate_server("operator", "revoke", "operator", "--state", state)
    config = state / "server.toml"
    config.write_text(config.read_text().replace("localhost:8443", "no-such-host.invalid:8443"))
    code, out, _ = quorate_server("doctor", "--state", state)
    assert code == EXIT_OTHER
    assert "BROKEN operators: no valid credential\n       Issue one with `quorate-server operator add NAME`." in out
    assert "BROKEN public address: no-such-host.invalid:8443" in out
    (state / "ca" / "ca.key").unlink()
    code, out, _ = quorate_server("doctor", "--state", state)
    assert code == EXIT_OTHER
    assert "Cannot read the certificate authority" in out


def test_the_doctor_tells_its_own_server_from_something_else_on_the_port(
    quorate_server: Command, tmp_path: Path
) -> None:
    state = tmp_path / "server"
    with door_in_thread(state) as (door, _):
        config = state / "server.toml"
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{door.port}"))
        code, out, _ = quorate_server("doctor", "--state", state)
        assert code == 0, out
        assert "the server answers at" in out
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            port = stranger.getsockname()[1]
            config.write_text(config.read_text().replace(f":{door.port}", f":{port}"))
            answering = threading.Thread(target=hang_up, args=(stranger,))
            answering.start()
            code, out, _ = quorate_server("doctor", "--state", state)
            answering.join()
    assert code == EXIT_OTHER
    assert "BROKEN door" in out


def hang_up(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.recv(4096)
