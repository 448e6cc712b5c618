"""How a refusal travels over gRPC: a status, plus an ``ErrorDetail`` in the trailing metadata."""

from __future__ import annotations

import base64
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from quorate.errors import (
    QuorateError,
    ServerIdentityError,
    ServerUnreachableError,
    TransportError,
    error_classes,
    is_code,
)
from quorate.process.printable import printable
from quorate.v1 import common_pb2

DETAIL_KEY = "quorate-error-bin"
MAX_TEXT_CHARACTERS = 2000


# gRPC tells it in words only, as one more way of being unavailable.
_SIGNS_OF_A_WRONG_CLOCK = ("certificate is not yet valid", "certificate has expired")
_SIGNS_OF_ANOTHER_SERVER = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
_IF_ANOTHER_ANSWERS = (
    "Check the address, and whether something on the way opens TLS connections; if the consortium was founded anew, "
    "use its new credential"
)


class FailedCall(Protocol):
    """What grpc's two families of call errors have in common."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> object: ...


def detail_of(error: QuorateError) -> common_pb2.ErrorDetail:
    """The error as it travels."""
    return common_pb2.ErrorDetail(
        code=error.code, what=error.what, expected=error.expected, got=error.got, action=error.action
    )


def error_of(detail: common_pb2.ErrorDetail) -> QuorateError:
    """The error that travelled. A code that this version does not know becomes the root class with that code kept.

    Its texts go to logs, databases and terminals, and the peer may be hostile: they are cut and cannot steer anything.
    """
    cls = error_classes().get(detail.code)
    what, expected, got, action = (
        printable(text[:MAX_TEXT_CHARACTERS])
        for text in (detail.what or detail.code, detail.expected, detail.got, detail.action)
    )
    error = (cls or QuorateError)(what, expected=expected, got=got, action=action)
    if cls is None and is_code(detail.code):
        error.code = detail.code  # type: ignore[misc]  # a newer peer's code: keep it readable
    return error


def status_of(error: QuorateError) -> grpc.StatusCode:
    """The gRPC status that carries the error."""
    return grpc.StatusCode[error.status]


def error_from_call(failure: FailedCall, address: str, if_another_answers: str = _IF_ANOTHER_ANSWERS) -> QuorateError:
    """Translate a failed call into our error tree. A server that is not the pinned one is told apart from one that is
    down.

    Args:
        if_another_answers: What to do then.
    """
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
            action=if_another_answers,
        )
    metadata = failure.trailing_metadata()
    pairs = list(metadata) if metadata is not None else []  # type: ignore[call-overload]  # grpc leaves it untyped
    for key, value in pairs:
        if key == DETAIL_KEY and isinstance(value, bytes):
            try:
                return error_of(common_pb2.ErrorDetail.FromString(value))
            except DecodeError:
                break
    if failure.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ServerUnreachableError(
            f"The server at {address} did not answer",
            got=f"{failure.code().name}: {failure.details()}",
            action="Check that quorate-server runs and that the address and the network path are right; "
            "a refused certificate looks the same from here, so also check its expiry and whether it was revoked",
        )
    return TransportError(
        f"The call to {address} failed",
        got=f"{failure.code().name}: {failure.details()}",
        action="Try again; if it stays, look into the server's log",
    )


def error_to_text(error: QuorateError) -> str:
    """As text, for a database or a pipe."""
    return base64.b64encode(detail_of(error).SerializeToString()).decode()


def error_from_text(text: str) -> QuorateError:
    return error_of(common_pb2.ErrorDetail.FromString(base64.b64decode(text)))
