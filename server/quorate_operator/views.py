"""Sites and studies as the operator sees them: plain values. Runs are ``quorate.rounds.run.RunView``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorate.identity import Member, SiteName

if TYPE_CHECKING:
    from quorate.study.readiness import Readiness
    from quorate.study.study import Site, Study


@dataclass(frozen=True, slots=True)
class SiteView:
    """One site. Times are Unix seconds; 0 where there is none."""

    name: SiteName
    state: str
    member: Member | None
    certificate_expires_unix_s: int
    invitation_expires_unix_s: int
    last_seen_unix_s: float
    version: str

    @property
    def can_take_part(self) -> bool:
        return self.member is not None and self.state not in ("invited", "revoked")


@dataclass(frozen=True, slots=True)
class AnswerView:
    """``answer`` is approved, rejected or none."""

    site: SiteName
    answer: str
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class StudyView:
    digest: bytes
    study: Study
    published_unix_s: float
    answers: tuple[AnswerView, ...]

    def roster(self) -> Iterator[tuple[Site, AnswerView]]:
        """Each site of the study with its answer."""
        given = {answer.site: answer for answer in self.answers}
        for name, site in zip(self.study.site_names, self.study.sites, strict=True):
            yield site, given.get(name, AnswerView(name, "none", 0.0))


@dataclass(frozen=True, slots=True)
class ReportView:
    """What a site reported last of whether it would work for a study."""

    site: SiteName
    readiness: Readiness
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class PlanView:
    """A study before it is started. ``reports`` lacks the sites that were not heard."""

    study: StudyView
    reports: tuple[ReportView, ...]

    def rows(self) -> Iterator[tuple[AnswerView, ReportView | None]]:
        """Each site's answer and its report."""
        reports = {report.site: report for report in self.reports}
        for _, answer in self.study.roster():
            yield answer, reports.get(answer.site)

    @property
    def approvals(self) -> int:
        return sum(answer.answer == "approved" for answer, _ in self.rows())

    @property
    def ready(self) -> int:
        """Sites that approved the study and would take part."""
        return sum(
            answer.answer == "approved" and report is not None and report.readiness.is_ready
            for answer, report in self.rows()
        )

    @property
    def not_heard(self) -> int:
        """Sites that approved the study and did not say whether they would take part: older ones never do."""
        return sum(answer.answer == "approved" and report is None for answer, report in self.rows())

    @property
    def can_start(self) -> bool:
        """Enough sites have approved, and enough of them would take part or at least did not say that they would
        not."""
        study = self.study.study
        return self.approvals >= study.needed_approvals and self.ready + self.not_heard >= study.rounds.quorum


@dataclass(frozen=True, slots=True)
class InvitationView:
    """What goes into an invitation file. It holds a private key: whoever has it can join under this name."""

    consortium: str
    address: str
    site: SiteName
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    expires_unix_s: int
