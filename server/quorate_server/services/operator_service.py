"""The gRPC service Operator: invitations, studies, runs, reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import grpc
import structlog

from quorate.errors import CertificateRevokedError, InputError, NotFoundError, StudyError
from quorate.identity import RunId, parse_name
from quorate.rounds.blobs import FRAME_BYTES, cut
from quorate.rounds.run import RunView
from quorate.study.study import Study
from quorate.v1 import common_pb2, operator_pb2, operator_pb2_grpc, rounds_pb2
from quorate.wire.messages import frame_to_proto, member_to_proto, readiness_to_proto, run_to_proto
from quorate_server.consortium.ca import DAY_S, Authority
from quorate_server.consortium.config import ServerConfig
from quorate_server.consortium.registry import Registry
from quorate_server.consortium.tables import AnswerRecord, SiteRecord, SiteStatus, StudyRecord
from quorate_server.runs.runs import Runs
from quorate_server.runs.sessions import Sessions
from quorate_server.services.access import caller
from quorate_server.services.pages import newest_that_fit

log = structlog.get_logger()

PAGE_BYTES = 1024 * 1024

MAX_INVITATION_DAYS = 90


class OperatorService(operator_pb2_grpc.OperatorServicer):
    """Caller of every call: an operator."""

    def __init__(
        self,
        *,
        config: ServerConfig,
        authority: Authority,
        registry: Registry,
        runs: Runs,
        sessions: Sessions,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._authority = authority
        self._registry = registry
        self._runs = runs
        self._sessions = sessions
        self._clock = clock

    # --- sites ---

    async def InviteSite(
        self, request: operator_pb2.InviteSiteRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.Invitation:
        site = parse_name(request.name)
        valid_s = request.valid_s or self._config.invitation_days * DAY_S
        if valid_s > MAX_INVITATION_DAYS * DAY_S:
            raise InputError(
                "The invitation would be valid for too long",
                expected=f"at most {MAX_INVITATION_DAYS} days",
                got=f"{valid_s / DAY_S:.0f} days",
                action="Whoever holds the file can join under this name: keep the time short",
            )
        now = self._clock()
        bootstrap = self._authority.issue_bootstrap(site, now, valid_s)
        self._registry.invite(site, bootstrap.issued, now + valid_s, keep_keys=request.keep_keys)
        log.info("site invited", site=site, keep_keys=request.keep_keys, operator=_operator())
        return operator_pb2.Invitation(
            consortium=self._config.consortium,
            address=self._config.address,
            site=site,
            ca_pem=self._authority.ca_pem,
            certificate_pem=bootstrap.issued.pem,
            key_pem=bootstrap.key_pem,
            expires_unix_s=int(now) + valid_s,
        )

    async def ListSites(
        self, request: operator_pb2.ListSitesRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.ListSitesReply:
        return operator_pb2.ListSitesReply(sites=[self._site_status(record) for record in self._registry.sites()])

    async def RevokeSite(
        self, request: operator_pb2.RevokeSiteRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.SiteStatus:
        site = parse_name(request.name)
        self._registry.revoke_site(site)
        await self._sessions.drop(
            site, CertificateRevokedError(f"The operator revoked the site {site}", action="Ask the operator why")
        )
        log.warning("site revoked", site=site, operator=_operator())
        return self._site_status(self._registry.site(site))

    def _site_status(self, record: SiteRecord) -> operator_pb2.SiteStatus:
        active = record.state is SiteStatus.ACTIVE
        return operator_pb2.SiteStatus(
            name=record.name,
            state=self._sessions.state(record.name) if active else record.state,
            member=member_to_proto(record.member) if record.member else None,
            certificate_expires_unix_s=int(record.certificate_expires_unix_s),
            last_seen_unix_s=self._sessions.last_seen(record.name),
            version=self._sessions.version(record.name),
            invitation_expires_unix_s=int(record.invitation_expires_unix_s),
        )

    # --- studies ---

    async def PublishStudy(
        self, request: operator_pb2.PublishStudyRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.StudyStatus:
        study = Study.from_canonical(request.canonical)
        if study.consortium != self._config.consortium:
            raise StudyError(
                "The study belongs to another consortium", expected=self._config.consortium, got=study.consortium
            )
        check_roster(study, self._registry.sites())
        self._config.require_guest_allowed(study)
        record = self._registry.publish(study)
        self._sessions.broadcast(rounds_pb2.ServerEvent(studies_changed=rounds_pb2.StudiesChanged()))
        log.info("study published", study=study.name, digest=record.digest.hex()[:12], operator=_operator())
        if study.protection.mode == "none":
            log.warning("study without protection: this server can read its updates", study=study.name)
        return _study_status(record)

    async def ListStudies(
        self, request: operator_pb2.ListStudiesRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.ListStudiesReply:
        return operator_pb2.ListStudiesReply(studies=newest_that_fit(self._registry.studies(), _study_status))

    async def GetStudy(
        self, request: operator_pb2.GetStudyRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.StudyStatus:
        return _study_status(self._registry.study(request.study))

    async def PlanStudy(
        self, request: operator_pb2.GetStudyRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.StudyPlan:
        record = self._registry.study(request.study)
        members = _members(record.study, self._registry.sites())
        return operator_pb2.StudyPlan(
            study=_study_status(record),
            sites=[
                operator_pb2.SiteReadiness(
                    site=report.site, readiness=readiness_to_proto(report.readiness), at_unix_s=report.at_unix_s
                )
                for report in self._registry.readiness(record.digest)
                if report.site in members
            ],
        )

    # --- runs ---

    async def StartRun(
        self, request: operator_pb2.StartRunRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.RunStatus:
        study = self._registry.study(request.study).study
        view = await self._runs.start(study)
        log.info("run asked for", run=view.run, study=study.name, operator=_operator())
        return _brief(view)

    async def ListRuns(
        self, request: operator_pb2.ListRunsRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.ListRunsReply:
        return operator_pb2.ListRunsReply(runs=newest_that_fit(self._runs.list(), _brief))

    async def GetRun(
        self, request: operator_pb2.GetRunRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.RunStatus:
        return _page(self._runs.view(self._find(request.run)), request.after_round)

    async def WatchRun(
        self, request: operator_pb2.GetRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[operator_pb2.RunStatus]:
        # Each result travels once: a message holds those that are new since the last one.
        after = request.after_round
        async for view in self._runs.changes(self._find(request.run)):
            more = True
            while more:
                page = _page(view, after)
                more = page.more_results
                yield page
                after = page.results[-1].round if page.results else after

    async def PauseRun(
        self, request: operator_pb2.GetRunRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.RunStatus:
        view = await self._runs.pause(self._find(request.run))
        log.info("run paused", run=view.run, operator=_operator())
        return _brief(view)

    async def ResumeRun(
        self, request: operator_pb2.GetRunRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.RunStatus:
        view = await self._runs.resume(self._find(request.run))
        log.info("run resumed", run=view.run, operator=_operator())
        return _brief(view)

    async def StopRun(
        self, request: operator_pb2.GetRunRequest, context: grpc.aio.ServicerContext
    ) -> operator_pb2.RunStatus:
        view = await self._runs.stop(self._find(request.run))
        log.info("run stopped", run=view.run, operator=_operator())
        return _brief(view)

    async def GetReport(
        self, request: operator_pb2.GetReportRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[common_pb2.Frame]:
        report = await self._runs.report(self._find(request.run), request.format)
        async for frame in _frames([report]):
            yield frame

    async def FetchModel(
        self, request: operator_pb2.GetRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[common_pb2.Frame]:
        run = self._find(request.run)
        with self._runs.model(run).open("rb") as file:
            log.info("model fetched", run=run, operator=_operator())
            async for frame in _frames(iter(partial(file.read, FRAME_BYTES), b"")):
                yield frame

    def _find(self, text: str) -> RunId:
        return find_run(text, self._runs.list())


def find_run(text: str, runs: Iterable[RunView]) -> RunId:
    """The run of that id, the only one of the study of that name, or the only one whose id begins with ``text``.

    Raises:
        NotFoundError: none, or more than one.
    """
    views = list(runs)
    if any(view.run == text for view in views):
        return RunId(text)
    found = [view.run for view in views if view.study == text]
    found = found or [view.run for view in views if text and view.run.startswith(text)]
    if len(found) != 1:
        raise NotFoundError(
            f"{len(found) or 'No'} runs have an id that begins with {text[:80]!r}",
            expected="the id of one run, or enough of its beginning",
            got=", ".join(found[:5]),
            action="`quorate run list` shows all runs",
        )
    return found[0]


def check_roster(study: Study, sites: Sequence[SiteRecord]) -> None:
    """Every site of a study has joined, and with the signing key that the study names.

    Raises:
        StudyError: naming each site that does not fit.
    """
    known = {record.name: record for record in sites}
    problems = []
    for site in study.sites:
        record = known.get(parse_name(site.name))
        if record is None or record.member is None:
            problems.append(f"{site.name} has not joined")
        elif record.state is SiteStatus.REVOKED:
            problems.append(f"{site.name} was revoked")
        elif record.member.signing_key.hex() != site.signing_key:
            problems.append(f"{site.name} has the key {record.member.fingerprint}, not {site.fingerprint}")
    if problems:
        raise StudyError(
            "The study's roster does not agree with this consortium",
            got="; ".join(problems),
            action="Publish the study file again with `quorate study publish`, once all its sites have joined",
        )


def _members(study: Study, sites: Sequence[SiteRecord]) -> set[str]:
    """The sites of a study that still are who it names: what one reported before it was revoked is left out."""
    keys = {
        (record.name, record.member.signing_key.hex())
        for record in sites
        if record.state is SiteStatus.ACTIVE and record.member is not None
    }
    return {site.name for site in study.sites if (site.name, site.signing_key) in keys}


def _brief(view: RunView) -> operator_pb2.RunStatus:
    """A run with no more than its last result."""
    return run_to_proto(replace(view, results=view.results[-1:]))


def _page(view: RunView, after_round: int) -> operator_pb2.RunStatus:
    """A run with its results after a round, as many as a message may hold."""
    status = run_to_proto(replace(view, results=tuple(r for r in view.results if r.round_number > after_round)))
    size = 0
    for count, result in enumerate(status.results):
        size += result.ByteSize()
        if size > PAGE_BYTES and count:
            del status.results[count:]
            status.more_results = True
            break
    return status


def _study_status(record: StudyRecord) -> operator_pb2.StudyStatus:
    given = {answer.site: answer for answer in record.answers}
    answers = [given.get(site, AnswerRecord(site, "none", b"", 0.0)) for site in record.study.site_names]
    return operator_pb2.StudyStatus(
        digest=record.digest,
        canonical=record.canonical,
        published_unix_s=record.published_unix_s,
        answers=[
            operator_pb2.StudyAnswer(
                site=answer.site, answer=answer.answer, signature=answer.signature, at_unix_s=answer.at_unix_s
            )
            for answer in answers
        ],
    )


async def _frames(content: Iterable[bytes]) -> AsyncIterator[common_pb2.Frame]:
    """Read and hash outside the event loop."""
    frames = cut(content)
    while (frame := await asyncio.to_thread(next, frames, None)) is not None:
        yield frame_to_proto(frame)


def _operator() -> str:
    return caller().subject.name
