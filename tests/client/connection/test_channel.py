"""The way out of a site."""

from __future__ import annotations

import os

import pytest

from quorate_client.connection.channel import unheeded_proxies
from quorate_client.site.config import Config
from quorate_client.site.folder import SiteFolder
from tests.http_proxy import running_proxy

from ..conftest import ScriptedEngine, enrol, live
from ..consortium import RunningServer


async def test_a_site_reaches_its_server_through_a_proxy_with_a_password(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, server.address)
    async with running_proxy() as (proxy, port):
        config = Config(proxy=f"http://user:secret@127.0.0.1:{port}")
        async with live(folder, engine, config):
            await (await server.services.visit()).next("heartbeat")

    assert proxy.asked[0].startswith(f"CONNECT {server.address} ".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in proxy.asked[0]


def a_proxy_by(variable: str, port: int) -> dict[str, str]:
    """An environment that names one."""
    if variable != "GRPC_ADDRESS_HTTP_PROXY":
        return {variable: f"http://127.0.0.1:{port}"}
    return {variable: f"127.0.0.1:{port}", "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "127.0.0.1/32"}


@pytest.mark.parametrize("variable", ["https_proxy", "http_proxy", "grpc_proxy", "GRPC_ADDRESS_HTTP_PROXY"])
async def test_a_proxy_of_the_environment_sees_no_connection_of_a_site_whose_configuration_names_none(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    enrol(folder, server.services, server.address)
    async with running_proxy() as (proxy, port):
        for name, value in a_proxy_by(variable, port).items():
            monkeypatch.setenv(name, value)
        assert unheeded_proxies(os.environ) == [variable], "it can be told"
        async with live(folder, engine):
            await (await server.services.visit()).next("heartbeat")
    assert proxy.asked == []


@pytest.mark.parametrize("variable", ["no_proxy", "no_grpc_proxy"])
async def test_the_environment_does_not_lead_a_site_past_the_proxy_of_its_configuration(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    enrol(folder, server.services, server.address)
    monkeypatch.setenv("no_grpc_proxy", "")
    monkeypatch.delenv("no_grpc_proxy")  # so that what the site sets is gone with the test
    monkeypatch.setenv(variable, "127.0.0.1,localhost")
    async with running_proxy() as (proxy, port), live(folder, engine, Config(proxy=f"http://127.0.0.1:{port}")):
        await (await server.services.visit()).next("heartbeat")
    assert len(proxy.asked) == 1


async def test_a_server_that_moved_is_found_at_the_configured_address(
    server: RunningServer, folder: SiteFolder, engine: ScriptedEngine
) -> None:
    enrol(folder, server.services, "old.invalid:1")
    async with live(folder, engine, Config(address=f"localhost:{server.port}")):
        await (await server.services.visit()).next("heartbeat")
