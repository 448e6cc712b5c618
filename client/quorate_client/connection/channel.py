"""The one way out: a TLS channel to the server, trusted by the consortium's own authority and by nothing else.

It goes through the proxy of the configuration, or through none: the environment does not choose the way.

The server's certificate is checked for the fixed name ``quorate-server``, not for its address: only the consortium's
authority can issue it, and the address may change without a new invitation.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import grpc

from quorate.errors import ServerUnreachableError
from quorate.v1 import enrolment_pb2_grpc, rounds_pb2_grpc
from quorate.wire.refusal import FailedCall, error_from_call
from quorate_client.site.keys import Credentials

SERVER_NAME = "quorate-server"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_IF_ANOTHER_ANSWERS = (
    "Run `quorate-client doctor`: it shows who issued it. A proxy that inspects TLS must let this connection pass "
    "untouched"
)

_PROXIES_OF_THE_ENVIRONMENT = ("grpc_proxy", "https_proxy", "http_proxy", "GRPC_ADDRESS_HTTP_PROXY")
_ADDRESSES_PAST_PROXIES = "no_grpc_proxy"

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    # The probe of the bandwidth-delay product buffers several times what the lookahead needs (measured: 307 against
    # 132 MB for eight uploads of 100 MB); without it and with a small lookahead a 40 ms line is ten times slower.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Keepalive finds dead network paths below us; whether the peer is alive is told by our own heartbeats.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without these two, a new channel inherits the back-off of an earlier one, and the wait is not ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.enable_retries", 0),
    # Of two variables with which the environment may put a proxy before an address; no other option switches it off.
    ("grpc.address_http_proxy_enabled_addresses", ""),
)


def open_channel(credentials: Credentials, address: str, proxy: str | None) -> grpc.aio.Channel:
    """A channel for the daemon's event loop. Nothing is sent before the first call."""
    return grpc.aio.secure_channel(address, _tls(credentials), options=_options_through(proxy))


def open_blocking_channel(credentials: Credentials, address: str, proxy: str | None) -> grpc.Channel:
    """A channel for a command that makes one short call."""
    return grpc.secure_channel(address, _tls(credentials), options=_options_through(proxy))


def unheeded_proxies(environment: Mapping[str, str]) -> list[str]:
    """Which variables name a proxy, for those who may count on one of them."""
    return [name for name in _PROXIES_OF_THE_ENVIRONMENT if environment.get(name)]


def rounds_stub(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """The server's rounds service; generated code is untyped."""
    return rounds_pb2_grpc.RoundsStub(channel)  # type: ignore[no-untyped-call]  # generated code


def enrolment_stub(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """The server's enrolment service; generated code is untyped."""
    return enrolment_pb2_grpc.EnrolmentStub(channel)  # type: ignore[no-untyped-call]  # generated code


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Translate gRPC's exceptions into our error tree."""
    try:
        yield
    except grpc.RpcError as failure:
        raise error_from_call(cast(FailedCall, failure), address, _IF_ANOTHER_ANSWERS) from failure
    except grpc.aio.UsageError as error:  # a call on a channel that was closed a moment ago
        raise _closed(address) from error
    except asyncio.CancelledError as error:
        # Closing a channel cancels its calls, which looks to their callers as if they were cancelled themselves.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _closed(address) from error


def _closed(address: str) -> ServerUnreachableError:
    return ServerUnreachableError(f"The connection to the server at {address} was closed")


def _tls(credentials: Credentials) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)


def _options_through(proxy: str | None) -> list[tuple[str, str | int]]:
    if not proxy:
        return [*_OPTIONS, ("grpc.enable_http_proxy", 0)]
    # gRPC goes straight to an address that `no_proxy` names, also where the program says through which proxy to go. It
    # does not look there once it finds this one, which nothing else reads.
    os.environ[_ADDRESSES_PAST_PROXIES] = ""
    return [*_OPTIONS, ("grpc.http_proxy", proxy)]
