"""How a refusal travels over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import pytest

from quorate.errors import QuorateError, QuorumMissingError, ServerUnreachableError, TransportError, error_classes
from quorate.v1 import common_pb2
from quorate.wire.refusal import DETAIL_KEY, detail_of, error_from_call, error_of, status_of


@dataclass
class Failure:
    """A failed call, as grpc shows it."""

    status: grpc.StatusCode
    metadata: Sequence[tuple[str, str | bytes]] | None = None

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return "details"

    def trailing_metadata(self) -> object:
        return self.metadata


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: str(cls.code))
def test_every_error_arrives_as_what_it_was(cls: type[QuorateError]) -> None:
    sent = cls("It broke", expected="a", got="b", action="Mend it")
    metadata = (("other", "x"), (DETAIL_KEY, detail_of(sent).SerializeToString()))
    arrived = error_from_call(Failure(status_of(sent), metadata), "localhost:1")
    assert type(arrived) is cls
    assert (arrived.code, str(arrived)) == (sent.code, str(sent))


def test_a_code_of_a_newer_version_stays_readable_and_changes_no_class() -> None:
    arrived = error_of(common_pb2.ErrorDetail(code="of_tomorrow", what="It broke"))
    assert type(arrived) is QuorateError
    assert arrived.code == "of_tomorrow"
    assert QuorateError.code == "internal"


def test_an_error_without_a_text_shows_its_code() -> None:
    assert "of_tomorrow" in str(error_of(common_pb2.ErrorDetail(code="of_tomorrow")))


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
@pytest.mark.parametrize("metadata", [None, (), ((DETAIL_KEY, b"\xff\xff"),), ((DETAIL_KEY, "text"),)])
def test_a_server_that_does_not_answer_is_named_with_what_to_check(
    status: grpc.StatusCode, metadata: Sequence[tuple[str, str | bytes]] | None
) -> None:
    arrived = error_from_call(Failure(status, metadata), "quorate.example:8443")
    assert isinstance(arrived, ServerUnreachableError)
    assert "quorate.example:8443" in str(arrived)
    assert "certificate" in arrived.action


def test_any_other_failure_is_a_transport_error_and_never_passes_for_a_refusal() -> None:
    arrived = error_from_call(Failure(grpc.StatusCode.PERMISSION_DENIED), "localhost:1")
    assert type(arrived) is TransportError


def test_the_bytes_of_a_refusal_never_change() -> None:
    detail = detail_of(QuorumMissingError("Too few sites", expected="3", got="2", action="Resume"))
    assert detail.SerializeToString(deterministic=True) == (
        b'\n\x0equorum_missing\x12\rToo few sites\x1a\x013"\x012*\x06Resume'
    )
