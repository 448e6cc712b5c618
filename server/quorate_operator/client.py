"""The calls of the gRPC service Operator."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import grpc

from quorate.errors import FrameError, ServerUnreachableError
from quorate.identity import SiteName
from quorate.rounds.run import RoundResult, RunView
from quorate.study.study import Study
from quorate.v1 import operator_pb2, operator_pb2_grpc
from quorate.wire.messages import frame_from_proto, member_from_proto, readiness_from_proto, run_from_proto
from quorate.wire.refusal import error_from_call
from quorate_operator.profile import Profile
from quorate_operator.views import AnswerView, InvitationView, PlanView, ReportView, SiteView, StudyView

SERVER_NAME = "quorate-server"
CALL_TIMEOUT_S = 30.0
TRANSFER_TIMEOUT_S = 3600.0
# A server that restarts is back in seconds; one that moves to another machine, in minutes.
RECONNECTS = 300
RECONNECT_WAIT_S = 1.0


class OperatorClient:
    """One connection to the server. Every method raises what the server refuses, as the same error."""

    def __init__(self, profile: Profile) -> None:
        self._address = profile.address
        credentials = grpc.ssl_channel_credentials(profile.ca_pem, profile.key_pem, profile.certificate_pem)
        # Only this consortium's authority issues a certificate for this name, so the address need not be in it.
        options = (
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.enable_retries", 0),
            # A command whose connection failed ends only when the transport's timer for the next attempt is over.
            ("grpc.initial_reconnect_backoff_ms", 100),
        )
        self._channel = grpc.secure_channel(profile.address, credentials, options)
        self._stub: Any = operator_pb2_grpc.OperatorStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    # --- sites ---

    def invite(self, name: SiteName, *, valid_s: int, keep_keys: bool) -> InvitationView:
        """``valid_s`` 0 is the server's default."""
        reply = self._call(
            self._stub.InviteSite, operator_pb2.InviteSiteRequest(name=name, valid_s=valid_s, keep_keys=keep_keys)
        )
        return InvitationView(
            reply.consortium,
            reply.address,
            SiteName(reply.site),
            reply.ca_pem,
            reply.certificate_pem,
            reply.key_pem,
            reply.expires_unix_s,
        )

    def sites(self) -> list[SiteView]:
        return [_site(status) for status in self._call(self._stub.ListSites, operator_pb2.ListSitesRequest()).sites]

    def revoke(self, name: SiteName) -> SiteView:
        return _site(self._call(self._stub.RevokeSite, operator_pb2.RevokeSiteRequest(name=name)))

    # --- studies ---

    def publish(self, study: Study) -> StudyView:
        return _study(
            self._call(self._stub.PublishStudy, operator_pb2.PublishStudyRequest(canonical=study.canonical()))
        )

    def studies(self) -> list[StudyView]:
        reply = self._call(self._stub.ListStudies, operator_pb2.ListStudiesRequest())
        return [_study(status) for status in reply.studies]

    def study(self, text: str) -> StudyView:
        """By its name, or the beginning of its digest."""
        return _study(self._call(self._stub.GetStudy, operator_pb2.GetStudyRequest(study=text)))

    def plan(self, text: str) -> PlanView:
        """The study, with what its sites reported of whether they would work for it."""
        reply = self._call(self._stub.PlanStudy, operator_pb2.GetStudyRequest(study=text))
        reports = tuple(
            ReportView(SiteName(each.site), readiness_from_proto(each.readiness), each.at_unix_s)
            for each in reply.sites
        )
        return PlanView(_study(reply.study), reports)

    # --- runs ---

    def start(self, study: str) -> RunView:
        return run_from_proto(self._call(self._stub.StartRun, operator_pb2.StartRunRequest(study=study)))

    def runs(self) -> list[RunView]:
        return [run_from_proto(run) for run in self._call(self._stub.ListRuns, operator_pb2.ListRunsRequest()).runs]

    def run(self, run: str) -> RunView:
        """The run with all its results, which may take several messages."""
        results: tuple[RoundResult, ...] = ()
        while True:
            after = results[-1].round_number if results else 0
            status = self._call(self._stub.GetRun, operator_pb2.GetRunRequest(run=run, after_round=after))
            view = run_from_proto(status)
            if not view.run.startswith(run):
                raise FrameError("The server answers about another run than the one that was asked for")
            results += view.results
            if not status.more_results:
                return replace(view, results=results)

    def pause(self, run: str) -> RunView:
        return run_from_proto(self._call(self._stub.PauseRun, operator_pb2.GetRunRequest(run=run)))

    def resume(self, run: str) -> RunView:
        return run_from_proto(self._call(self._stub.ResumeRun, operator_pb2.GetRunRequest(run=run)))

    def stop(self, run: str) -> RunView:
        return run_from_proto(self._call(self._stub.StopRun, operator_pb2.GetRunRequest(run=run)))

    def watch(self, run: str, wait: Callable[[float], None] = time.sleep) -> Iterator[RunView]:
        """The run now and after each change until it is over. A server that restarts is waited for."""
        failures = 0
        seen = False
        results: tuple[RoundResult, ...] = ()
        while True:
            try:
                with self._translated():
                    after = results[-1].round_number if results else 0
                    for status in self._stub.WatchRun(operator_pb2.GetRunRequest(run=run, after_round=after)):
                        news = run_from_proto(status)
                        results += news.results
                        view = replace(news, results=results)
                        failures, seen = 0, True
                        yield view
                        if view.state.is_over:
                            return
                # A server that stops in good order ends the stream though the run goes on.
                raise ServerUnreachableError(f"The server at {self._address} ended the watch before the run was over")
            except ServerUnreachableError:
                failures += 1
                if not seen or failures > RECONNECTS:
                    raise
                wait(RECONNECT_WAIT_S)

    def report(self, run: str, report_format: str) -> Iterator[bytes]:
        """The pieces of the report."""
        return self._download(self._stub.GetReport, operator_pb2.GetReportRequest(run=run, format=report_format))

    def model(self, run: str) -> Iterator[bytes]:
        """The pieces of the released model."""
        return self._download(self._stub.FetchModel, operator_pb2.GetRunRequest(run=run))

    def _call(self, method: Any, request: object) -> Any:
        with self._translated():
            return method(request, timeout=CALL_TIMEOUT_S)

    def _download(self, method: Any, request: object) -> Iterator[bytes]:
        with self._translated():
            for index, proto in enumerate(method(request, timeout=TRANSFER_TIMEOUT_S)):
                frame = frame_from_proto(proto)
                if frame.index != index or hashlib.sha256(frame.data).digest() != frame.sha256:
                    raise FrameError(
                        f"Frame {index} of the download is not the one that was sent", action="Fetch it again"
                    )
                yield frame.data

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as failure:
            raise error_from_call(failure, self._address) from failure


def _site(status: operator_pb2.SiteStatus) -> SiteView:
    return SiteView(
        SiteName(status.name),
        status.state,
        member_from_proto(status.member) if status.HasField("member") else None,
        status.certificate_expires_unix_s,
        status.invitation_expires_unix_s,
        status.last_seen_unix_s,
        status.version,
    )


def _study(status: operator_pb2.StudyStatus) -> StudyView:
    answers = tuple(AnswerView(SiteName(answer.site), answer.answer, answer.at_unix_s) for answer in status.answers)
    return StudyView(status.digest, Study.from_canonical(status.canonical), status.published_unix_s, answers)
