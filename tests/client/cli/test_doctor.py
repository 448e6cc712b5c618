"""The doctor tells apart what gRPC reports alike."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quorate.errors import CertificateRevokedError
from quorate_client.cli.doctor import Finding, examine
from quorate_client.site.database import ConnectionReport, site_state
from quorate_client.site.folder import SiteFolder

from ..conftest import enrol
from ..consortium import Authority, Server, blocking_server


def findings(folder: SiteFolder) -> dict[str, Finding]:
    return {finding.step: finding for finding in examine(folder, time.time)}


def failed(folder: SiteFolder) -> list[Finding]:
    return [finding for finding in findings(folder).values() if finding.verdict == "failed"]


@contextmanager
def proxy_that_answers(status: bytes) -> Iterator[int]:
    """A proxy that gives every CONNECT the same answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_healthy_site_has_no_failures(joined: SiteFolder) -> None:
    found = findings(joined)

    assert failed(joined) == []
    for step in ("identity", "certificate", "address", "connection", "server's certificate", "server"):
        assert found[step].verdict == "ok"
    assert found["this site's certificate"].text == "the server accepts it in the handshake"


def test_what_this_site_demands_of_attested_machines_is_told(joined: SiteFolder) -> None:
    assert findings(joined)["attestation"].text == "left to each study"
    own = joined.root / "own.toml"
    own.write_text('environment = "development"\n[software]\nkeys = ["' + "11" * 32 + '"]\n')
    joined.policy.write_text('[attestation]\nrequired = true\nfile = "own.toml"\n')
    found = findings(joined)["attestation"]
    assert found.verdict == "ok"
    assert "every study must demand an attested machine; own.toml has to be met too: software: key 1111" in found.text
    joined.policy.write_text("[attestation]\nsoftware = true\n")
    found = findings(joined)["attestation"]
    assert (found.verdict, "proves nothing about any machine" in found.text) == ("warning", True)
    joined.policy.write_text('[attestation]\nfile = "gone.toml"\n')
    assert findings(joined)["attestation"].verdict == "failed"


def test_a_policy_that_allows_unprotected_studies_is_a_warning(joined: SiteFolder) -> None:
    assert findings(joined)["policy"].verdict == "warning"


def test_a_broken_policy_is_named(joined: SiteFolder) -> None:
    joined.policy.write_text("protektion = 1\n")

    assert findings(joined)["policy"].verdict == "failed"


def test_a_site_that_has_not_joined_is_told_so(folder: SiteFolder) -> None:
    (finding,) = failed(folder)

    assert "quorate-client join" in finding.text


def test_a_name_that_does_not_exist_is_told_apart(joined: SiteFolder) -> None:
    joined.config.write_text('address = "no-such-host.invalid:8443"\n')

    (finding,) = failed(joined)

    assert (finding.step, "cannot be resolved" in finding.text) == ("address", True)


def test_a_dead_server_is_told_apart(joined: SiteFolder) -> None:
    joined.config.write_text('address = "127.0.0.1:1"\n')

    (finding,) = failed(joined)

    assert finding.step == "connection"


def test_tls_inspection_is_told_apart_and_its_issuer_is_shown(joined: SiteFolder, services: Server) -> None:
    with blocking_server(services, issuer=Authority("Hospital Proxy")) as where:
        joined.config.write_text(f'address = "{where}"\n')
        (finding,) = failed(joined)

    assert finding.step == "server's certificate"
    assert "authority of Hospital Proxy" in finding.text
    assert "never accepted" in finding.action


def test_something_that_does_not_speak_tls_is_told_apart(joined: SiteFolder) -> None:
    with proxy_that_answers(b"400 Bad Request") as port:
        joined.config.write_text(f'address = "127.0.0.1:{port}"\n')
        (finding,) = failed(joined)

    assert (finding.step, "does not speak TLS" in finding.text) == ("server's certificate", True)


def test_a_refused_certificate_is_told_apart_from_a_dead_server(
    folder: SiteFolder, services: Server, address: str
) -> None:
    enrol(folder, services, address, life=(-200, -100))
    found = findings(folder)

    assert found["certificate"].verdict == "failed"
    assert "--keep-keys" in found["certificate"].action
    assert found["connection"].verdict == "ok"
    assert found["this site's certificate"].verdict == "failed"
    assert "in the handshake" in found["this site's certificate"].text


def test_a_revoked_certificate_is_told_apart(joined: SiteFolder, services: Server) -> None:
    services.faults.studies_refused = CertificateRevokedError("The operator revoked the certificate of north")

    (finding,) = failed(joined)

    assert (finding.step, "revoked" in finding.text) == ("server", True)


def test_a_proxy_that_refuses_is_told_apart(joined: SiteFolder) -> None:
    with proxy_that_answers(b"403 Forbidden") as port:
        joined.config.write_text(f'proxy = "http://127.0.0.1:{port}"\n')
        (finding,) = failed(joined)

    assert (finding.step, "403 Forbidden" in finding.text) == ("proxy", True)


def test_a_proxy_of_the_environment_is_told_not_to_be_used(joined: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")

    finding = findings(joined)["proxy"]

    assert (finding.verdict, "https_proxy of the environment is not used" in finding.text) == ("warning", True)
    assert failed(joined) == [], "the server is reached, straight"


@pytest.mark.parametrize(("offset_s", "verdict"), [(1.0, "ok"), (-172_800.0, "warning")])
def test_the_clock_is_compared_with_the_servers(joined: SiteFolder, offset_s: float, verdict: str) -> None:
    with site_state(joined.database) as state:
        state.report_connection(ConnectionReport("connected", "server:1", 0.0, clock_offset_s=offset_s))

    assert findings(joined)["clock"].verdict == verdict


def test_isolation_of_tasks_is_tried(joined: SiteFolder) -> None:
    assert findings(joined)["isolation of tasks"].verdict in ("ok", "warning")


def test_looking_changes_nothing(joined: SiteFolder) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in joined.root.rglob("*") if path.is_file()}

    before = files()
    findings(joined)

    assert files() == before
