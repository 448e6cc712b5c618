"""Who may call what. One table, one guard in front of every call.

The handshake lets in whoever holds a certificate of this consortium; the guard then asks, for each call: does the table
know the method, does the certificate's role fit, does the registry still count the certificate? Only then the handler
runs. What is asked stays bytes until then, so that nobody else has anything parsed, and bytes that are no request are
refused like all else. On the way back the guard turns refusals into what ``wire.refusal`` carries, and keeps every
other exception's text inside the server.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import grpc
import structlog
from cryptography import x509
from google.protobuf.message import DecodeError

from quorate.errors import FrameError, IdentityError, QuorateError, WrongRoleError
from quorate.identity import Role, Subject
from quorate.wire.refusal import DETAIL_KEY, detail_of, status_of
from quorate_server.consortium.registry import Registry
from quorate_server.services.open_calls import MAX_CALLS, OpenCalls

log = structlog.get_logger()

_ROLES: dict[str, dict[Role, tuple[str, ...]]] = {
    "/quorate.v1.Enrolment/": {
        Role.BOOTSTRAP: ("Redeem",),
        Role.SITE: ("Renew",),
    },
    "/quorate.v1.Rounds/": {
        Role.SITE: (
            *("Connect", "OpenUpload", "Upload", "Download"),
            *("ListStudies", "AnswerStudy", "ReportReadiness", "Attest"),
        ),
    },
    "/quorate.v1.Operator/": {
        Role.OPERATOR: (
            *("InviteSite", "ListSites", "RevokeSite"),
            *("PublishStudy", "ListStudies", "GetStudy", "PlanStudy"),
            *("StartRun", "ListRuns", "GetRun", "WatchRun", "PauseRun", "ResumeRun", "StopRun"),
            *("GetReport", "FetchModel"),
        ),
    },
}
METHODS: Mapping[str, Role] = MappingProxyType(
    {service + name: role for service, roles in _ROLES.items() for role, names in roles.items() for name in names}
)
"""Each method's full name and the one role that may call it."""

# Trailing metadata beyond 8 KiB is dropped by peers, and the reason with it.
_MAX_DETAIL_CHARACTERS = 1500


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as its certificate says."""

    subject: Subject
    serial: int


_CALLER: ContextVar[Caller] = ContextVar("caller")

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Any]
Admit = Callable[[grpc.aio.ServicerContext], Caller]
Parse = Callable[[bytes], Any]


def caller() -> Caller:
    """The caller of the call that is being handled."""
    return _CALLER.get()


class AccessGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """The guard. Every server of this consortium is built with it, as its only interceptor that decides."""

    def __init__(
        self,
        consortium: str,
        registry: Registry,
        max_calls: int = MAX_CALLS,
        refused: Callable[[str], None] = lambda code: None,
    ) -> None:
        """``refused`` is told the code of each refusal."""
        self._consortium = consortium
        self._registry = registry
        self._calls = OpenCalls(max_calls)
        self._refused = refused

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(details)
        role = METHODS.get(details.method)
        if handler is None or role is None:
            guard = _Guard(details.method, self._refuse_all, self._calls, self._refused)
            return grpc.unary_unary_rpc_method_handler(_guarded(_unreachable, guard))
        guard = _Guard(details.method, lambda context: self._admit(context, role), self._calls, self._refused)
        return _with_guard(handler, guard)

    def _admit(self, context: grpc.aio.ServicerContext, role: Role) -> Caller:
        calling = self._identify(context)
        if calling.subject.role is not role:
            raise WrongRoleError(
                f"A certificate of the role {calling.subject.role} cannot make this call",
                expected=f"a certificate of the role {role}",
                action=_ACTIONS[calling.subject.role],
            )
        return calling

    def _refuse_all(self, context: grpc.aio.ServicerContext) -> Caller:
        calling = self._identify(context)
        raise WrongRoleError(
            "This server does not offer this call to anybody",
            got=f"a call by the {calling.subject.role} {calling.subject.name}",
            action="Check that both sides run versions of Quorate that go together",
        )

    def _identify(self, context: grpc.aio.ServicerContext) -> Caller:
        pems = context.auth_context().get("x509_pem_cert", ())
        if len(pems) != 1:
            raise IdentityError("This call needs a certificate", action="Connect with the certificate of your role")
        calling = _read(bytes(pems[0]))
        _CALLER.set(calling)
        if calling.subject.consortium != self._consortium:
            raise IdentityError("The certificate is another consortium's", expected=self._consortium)
        self._registry.check_certificate(calling.subject, calling.serial)
        return calling


_ACTIONS = {
    Role.BOOTSTRAP: "An invitation can be redeemed and nothing else: run `quorate-client join` with it",
    Role.SITE: "Operators' commands need an operator's credential: set QUORATE_PROFILE to its folder",
    Role.OPERATOR: "What sites do is done by quorate-client with the site's own certificate",
    Role.SERVER: "A server's certificate makes no calls",
}


@lru_cache(maxsize=4096)
def _read(pem: bytes) -> Caller:
    """The handshake verified the chain; a site's every call shows the same certificate, hence the cache."""
    certificate = x509.load_pem_x509_certificate(pem)
    return Caller(Subject.of(certificate), certificate.serial_number)


async def _unreachable(request: Any, context: grpc.aio.ServicerContext) -> None:
    """What stands behind a guard that admits nobody."""
    raise AssertionError("a call that nobody may make was admitted")


@dataclass(frozen=True, slots=True)
class _Guard:
    """What stands before one method."""

    method: str
    admit: Admit
    calls: OpenCalls
    refused: Callable[[str], None]


def _with_guard(handler: grpc.RpcMethodHandler, guard: _Guard) -> grpc.RpcMethodHandler:
    kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
    behaviour = _parsing(getattr(handler, kind), handler.request_deserializer, is_stream=handler.request_streaming)
    return handler._replace(request_deserializer=None, **{kind: _guarded(behaviour, guard)})


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _guarded(behaviour: Behaviour, guard: _Guard) -> Behaviour:
    """The handler behind the guard. The transport tells generators from coroutines, so each stays what it was."""
    if inspect.isasyncgenfunction(behaviour):

        async def streaming(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async with _translated(guard, context):
                with guard.calls.one_more(guard.admit(context).subject):
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            guard.admit(context)  # again: who watches a run may be revoked before it ends
                            yield response

        return streaming

    async def returning(request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with _translated(guard, context):
            with guard.calls.one_more(guard.admit(context).subject):
                return await behaviour(request, context)

    return returning


def _parsing(behaviour: Behaviour, parse: Parse, *, is_stream: bool) -> Behaviour:
    """The handler, of bytes in the place of a request or of a stream of them."""
    read = partial(_Parsed, parse=parse) if is_stream else partial(_parsed, parse=parse)
    if inspect.isasyncgenfunction(behaviour):

        async def streaming(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async with aclosing(behaviour(read(request), context)) as responses:
                async for response in responses:
                    yield response

        return streaming

    async def returning(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await behaviour(read(request), context)

    return returning


class _Parsed:
    """A stream of requests. Not a generator: a handler that stops reading in between leaves nothing behind."""

    def __init__(self, requests: AsyncIterable[bytes], parse: Parse) -> None:
        self._requests = aiter(requests)
        self._parse = parse

    def __aiter__(self) -> _Parsed:
        return self

    async def __anext__(self) -> Any:
        return _parsed(await anext(self._requests), self._parse)


def _parsed(data: bytes, parse: Parse) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise FrameError(
            "A request could not be read", action="Check that both sides run versions of Quorate that go together"
        ) from error


@asynccontextmanager
async def _translated(guard: _Guard, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """Refusals travel with their code; of any other exception nothing but the fact does."""
    try:
        yield
    except QuorateError as error:
        guard.refused(error.code)
        log.info("call refused", method=guard.method, code=error.code, caller=_name_of_caller())
        await _abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:
        guard.refused(QuorateError.code)
        log.exception("call failed", method=guard.method, caller=_name_of_caller())
        await _abort(
            context, QuorateError("The server failed", action="The server's log says why; tell its administrator")
        )


async def _abort(context: grpc.aio.ServicerContext, error: QuorateError) -> None:
    detail = detail_of(error)
    for field in ("what", "expected", "got", "action"):
        setattr(detail, field, getattr(detail, field)[:_MAX_DETAIL_CHARACTERS])
    metadata = ((DETAIL_KEY, detail.SerializeToString()),)
    await context.abort(status_of(error), error.what[:_MAX_DETAIL_CHARACTERS], metadata)


def _name_of_caller() -> str:
    calling = _CALLER.get(None)
    return f"{calling.subject.role}/{calling.subject.name}" if calling else ""
