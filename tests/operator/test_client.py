from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from quorate.errors import (
    CertificateRevokedError,
    FrameError,
    ServerIdentityError,
    ServerUnreachableError,
    WrongRoleError,
)
from quorate.identity import SiteName
from quorate.rounds.run import RunState
from quorate.v1 import common_pb2, operator_pb2_grpc
from quorate_operator.client import OperatorClient
from quorate_operator.profile import Profile
from quorate_server.consortium.ca import Authority
from quorate_server.consortium.server_certificate import ServerIdentity
from tests.http_proxy import running_proxy
from tests.operator.conftest import Inside
from tests.server.door import Door, SiteKeys, a_study


@pytest.fixture
def profile(door: Door) -> Profile:
    return Profile.load(door.state_dir / "operator", time.time())


@pytest.fixture
def client(profile: Profile) -> Iterator[OperatorClient]:
    with OperatorClient(profile) as client:
        yield client


def test_a_refusal_arrives_as_the_same_error(client: OperatorClient, door: Door) -> None:
    door.registry.revoke_operator("operator")
    with pytest.raises(CertificateRevokedError, match="operator add"):
        client.sites()


def test_a_sites_certificate_does_not_make_an_operator(profile: Profile, door: Door) -> None:
    keys, issued = door.enrol("north")
    stolen = replace(profile, certificate_pem=issued.pem, key_pem=keys.key_pem())
    with OperatorClient(stolen) as client, pytest.raises(WrongRoleError, match="QUORATE_PROFILE"):
        client.revoke(SiteName("north"))
    assert door.registry.site(SiteName("north")).member is not None


def test_a_server_of_another_authority_is_told_apart_from_a_dead_one(profile: Profile, tmp_path: Path) -> None:
    impostor = Authority.create(tmp_path / "impostor", "north-sea", time.time())
    with OperatorClient(replace(profile, ca_pem=impostor.ca_pem)) as client, pytest.raises(ServerIdentityError):
        client.sites()
    with OperatorClient(replace(profile, address="localhost:1")) as client, pytest.raises(ServerUnreachableError):
        client.sites()


def test_an_answer_about_another_run_is_not_taken_for_the_one_that_was_asked_for(
    client: OperatorClient, door: Door, inside: Inside
) -> None:
    """Else a server could hand out an older model, which the sites signed too."""
    old, new = (inside(door.runs.start(a_study(SiteKeys.make("north")))).run for _ in range(2))
    views = door.runs.views
    views[old], views[new] = views[new], views[old]
    with pytest.raises(FrameError, match="another run"):
        client.run(new)


def test_a_watch_goes_on_through_a_restart_of_the_server(client: OperatorClient, door: Door, inside: Inside) -> None:
    run = inside(door.runs.start(a_study(SiteKeys.make("north")))).run
    door.runs.watches_to_cut_short = 2
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        inside(door.runs.close_round(run, loss=0.5))

    seen = []
    for view in client.watch(run, wait):
        seen.append(len(view.results))
        if len(waits) == 2 and not view.state.is_over:
            inside(door.runs.close_round(run, loss=0.5))
    assert seen == [0, 1, 2, 3]
    assert view.state is RunState.COMPLETED
    assert len(waits) == 2


def test_a_watch_of_a_server_that_was_never_there_ends_at_once(profile: Profile) -> None:
    with (
        OperatorClient(replace(profile, address="localhost:1")) as client,
        pytest.raises(ServerUnreachableError),
    ):
        list(client.watch("any", lambda seconds: pytest.fail("there is nothing to wait for")))


@pytest.mark.parametrize("variable", ["https_proxy", "no_proxy"])
def test_an_operators_shell_decides_about_the_proxy(
    profile: Profile, inside: Inside, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As with other commands that one types; a site's daemon has a configuration for it."""
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.setenv("no_proxy", "localhost" if variable == "no_proxy" else "")
    proxied = running_proxy()
    proxy, port = inside(proxied.__aenter__())
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    with OperatorClient(profile) as client:
        assert client.sites() == []
    inside(proxied.__aexit__(None, None, None))
    assert len(proxy.asked) == (variable == "https_proxy")


def test_a_download_arrives_whole(client: OperatorClient, door: Door, inside: Inside, tmp_path: Path) -> None:
    run = inside(door.runs.start(a_study(SiteKeys.make("north")))).run
    content = bytes(range(256)) * 3000
    door.runs.model_path = tmp_path / "model.npz"
    door.runs.model_path.write_bytes(content)
    assert b"".join(client.model(run)) == content


@pytest.mark.parametrize("fault", ["corrupted", "reordered", "duplicated", "missing"])
def test_a_frame_that_is_not_the_one_that_was_sent_is_refused(profile: Profile, door: Door, fault: str) -> None:
    frames = [(index, bytes([index]) * 8) for index in range(3)]
    server, port = faulty_server(door.authority, frames, fault)
    with OperatorClient(replace(profile, address=f"localhost:{port}")) as client, pytest.raises(FrameError):
        list(client.model("any"))
    server.stop(None)


def faulty_server(authority: Authority, frames: list[tuple[int, bytes]], fault: str) -> tuple[grpc.Server, int]:
    sent = [common_pb2.Frame(index=n, data=data, sha256=hashlib.sha256(data).digest()) for n, data in frames]
    match fault:
        case "corrupted":
            sent[1].data = b"\xff" * 8
        case "reordered":
            sent[0], sent[1] = sent[1], sent[0]
        case "duplicated":
            sent.insert(1, sent[0])
        case "missing":
            del sent[1]

    class Faulty(operator_pb2_grpc.OperatorServicer):
        def FetchModel(self, request: object, context: object) -> Iterator[common_pb2.Frame]:  # noqa: N802
            yield from sent

    server = grpc.server(ThreadPoolExecutor(1))
    operator_pb2_grpc.add_OperatorServicer_to_server(Faulty(), server)
    port = server.add_secure_port("127.0.0.1:0", ServerIdentity(authority, "localhost", time.time).server_credentials())
    server.start()
    return server, port
