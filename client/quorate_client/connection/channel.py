"""The one way out: a TLS channel to the server, trusted by the consortium's own authority and by nothing else.

The server's certificate is checked for the fixed name ``quorate-server``, not for its address: only the consortium's
authority can issue it, and the address may change without a new invitation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc

from quorate.errors import QuorateError, ServerIdentityError, ServerUnreachableError
from quorate.v1 import enrolment_pb2_grpc, rounds_pb2_grpc
from quorate.wire.refusal import FailedCall, error_from_call
from quorate_client.site.keys import Credentials

SERVER_NAME = "quorate-server"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

# gRPC tells it in words only, as one more way of being unavailable.
_SIGNS_OF_A_WRONG_CLOCK = ("certificate is not yet valid", "certificate has expired")
_SIGNS_OF_ANOTHER_SERVER = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")

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
)


def open_channel(credentials: Credentials, address: str, proxy: str | None) -> grpc.aio.Channel:
    """A channel for the daemon's event loop. Nothing is sent before the first call."""
    return grpc.aio.secure_channel(address, _tls(credentials), options=_options(proxy))


def open_blocking_channel(credentials: Credentials, address: str, proxy: str | None) -> grpc.Channel:
    """A channel for a command that makes one short call."""
    return grpc.secure_channel(address, _tls(credentials), options=_options(proxy))


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
        raise call_error(cast(FailedCall, failure), address) from failure
    except grpc.aio.UsageError as error:  # a call on a channel that was closed a moment ago
        raise _closed(address) from error
    except asyncio.CancelledError as error:
        # Closing a channel cancels its calls, which looks to their callers as if they were cancelled themselves.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _closed(address) from error


def call_error(failure: FailedCall, address: str) -> QuorateError:
    """The refusal behind a failed call. A server that is not the pinned one is told apart from one that is down."""
    details = failure.details() or ""
    if any(sign in details for sign in _SIGNS_OF_A_WRONG_CLOCK):
        return ServerIdentityError(
            f"By this machine's clock, the certificate of what answers at {address} is not valid now",
            action="Set this machine's clock, for example with NTP; if it is right, tell the server's administrator",
        )
    if any(sign in details for sign in _SIGNS_OF_ANOTHER_SERVER):
        return ServerIdentityError(
            f"What answers at {address} is not this consortium's server",
            expected="a certificate that the consortium's pinned authority issued",
            got="another one",
            action="Run `quorate-client doctor`: it shows who issued it. A proxy that inspects TLS must let this "
            "connection pass untouched",
        )
    return error_from_call(failure, address)


def _closed(address: str) -> ServerUnreachableError:
    return ServerUnreachableError(f"The connection to the server at {address} was closed")


def _tls(credentials: Credentials) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)


def _options(proxy: str | None) -> list[tuple[str, str | int]]:
    return [*_OPTIONS, *([("grpc.http_proxy", proxy)] if proxy else [])]
