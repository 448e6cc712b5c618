"""Sites, studies and runs on a terminal, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from quorate.attestation.appraisal import SOFTWARE, remarks_about
from quorate.attestation.evidence import Kind
from quorate.privacy.training_data import IN_A_WORD, PAID_BEFORE
from quorate.rounds.run import RoundResult, RunState, RunView, SiteAppraisal
from quorate_operator.json_output import OF_TWO, UNPROTECTED
from quorate_operator.times import ago, until
from quorate_operator.views import PlanView, ReportView, SiteView, StudyView

if TYPE_CHECKING:
    from quorate.study.study import Study, TaskRef

_STYLES = {
    **dict.fromkeys(("online", "running", "completed", "approved", "replied", "working", "trusted"), "green"),
    **dict.fromkeys(("invited", "silent", "paused", "stopped", "none", "absent", "asked"), "yellow"),
    **dict.fromkeys(("offline", "revoked", "failed", "rejected", "refused"), "red"),
}
# In this order where they are there; others follow by name.
_METRICS_FIRST = ("loss", "accuracy", "auc")
LATEST_ROUNDS = 10


def warning() -> Text:
    return Text(f"WARNING: {UNPROTECTED}", style="bold red")


def sites_table(sites: Iterable[SiteView], now: float) -> Table:
    table = _table("site", "state", "signing key", "last seen", "certificate", "invitation", "version")
    for site in sites:
        invitation = until(site.invitation_expires_unix_s, now)
        table.add_row(
            site.name,
            _state(site.state),
            site.member.fingerprint if site.member else "",
            ago(site.last_seen_unix_s, now) if site.member else "",
            until(site.certificate_expires_unix_s, now),
            invitation,
            site.version,
        )
    return table


def studies_table(studies: Sequence[StudyView], now: float) -> RenderableType:
    table = _table("study", "digest", "kind", "task", "rounds", "protection", "approved by", "published")
    for view in studies:
        approved = sum(answer.answer == "approved" for answer in view.answers)
        table.add_row(
            view.study.name,
            view.digest.hex()[:12],
            view.study.kind,
            view.study.task.name,
            str(view.study.rounds.count),
            _protection(view.study.protection.mode),
            f"{approved} of {len(view.study.sites)}",
            ago(view.published_unix_s, now),
        )
    return _warned(table, any(view.study.protection.mode == "none" for view in studies))


def study_page(view: StudyView, now: float) -> RenderableType:
    study = view.study
    rounds = study.rounds
    without_noise = PAID_BEFORE if study.training_data == "synthetic" else "none"
    facts = _facts(
        {
            "study": study.name,
            "purpose": study.purpose,
            "digest": view.digest.hex(),
            "published": ago(view.published_unix_s, now),
            "task": f"{study.task.name}  {study.task.digest[:12]}{_other_version(study.task)}",
            "parameters": ", ".join(f"{key} = {_brief(value)}" for key, value in sorted(study.task.parameters.items())),
            "rounds": f"{rounds.count}, each with at least {rounds.quorum} of {len(study.sites)} sites "
            f"within {rounds.deadline_s:g} s",
            "optimizer": study.optimizer.name if study.kind == "study" else f"of {_guest_app(view)}",
            "model goes to": "the sites and the operator" if study.released_to == "operator" else "the sites",
            "sealed to": study.release.operator_fingerprint,
            "trained on": IN_A_WORD[study.training_data] if study.kind == "study" else "",
            "synthetic sets": study.synthetic.summary if study.synthetic else "",
            "protection": study.protection_summary,
            "attested": _versions(study),
            "privacy": study.privacy.summary if study.privacy else without_noise,
            "approvals": f"{study.needed_approvals} of {len(study.sites)} sites before any works",
            "expires": study.expires.isoformat() if study.expires else "never",
        }
    )
    answers = _table("site", "signing key", "answer", "")
    for site, answer in view.roster():
        when = ago(answer.at_unix_s, now) if answer.at_unix_s else ""
        answers.add_row(site.name, site.fingerprint, _state(answer.answer), when)
    of_two = [Text(f"WARNING: {OF_TWO}", style="yellow")] if study.is_of_two else []
    page = Group(facts, *_remarks(study), Text(), answers, *of_two)
    return _warned(page, study.protection.mode == "none")


def _other_version(task: TaskRef) -> str:
    return f", or {task.also.digest[:12]} until {task.also.until} (UTC)" if task.also is not None else ""


def _brief(value: Any) -> str:
    """A parameter in a line; a table among them (a schema, say) by its keys."""
    return f"[{', '.join(value)}]" if isinstance(value, dict) else str(value)


def plan_page(view: PlanView, now: float) -> RenderableType:
    """What each site says before a run is started, and whether that is enough for one."""
    study = view.study.study
    table = _table("site", "answer", "as things stand", "told")
    for answer, report in view.rows():
        table.add_row(
            answer.site,
            _state(answer.answer),
            _verdict(report),
            ago(report.at_unix_s, now) if report else "",
        )
    verdict = Text("it can start", "green") if view.can_start else Text("it cannot start yet", "red")
    unheard = f" ({view.not_heard} more not heard)" if view.not_heard else ""
    line = Text(
        f"{view.approvals} of {study.needed_approvals} needed approvals; {view.ready}{unheard} of a quorum of "
        f"{study.rounds.quorum} approved it and would take part: "
    )
    protection = _facts({"protection": study.protection_summary})
    page = Group(protection, *_remarks(study), Text(), table, Text(), line + verdict)
    return _warned(page, study.protection.mode == "none")


def _verdict(report: ReportView | None) -> Text:
    if report is None:
        return Text("not heard", "yellow")
    if report.readiness.is_ready:
        return Text("would take part", "green")
    return Text(f"blocked by {report.readiness.code}", "red")


def runs_table(runs: Sequence[RunView], now: float) -> RenderableType:
    table = _table("run", "study", "state", "round", "protection", "started", "reason")
    for view in runs:
        table.add_row(
            view.run,
            view.study,
            _state(view.state),
            f"{view.round_number} of {view.rounds}",
            _protection(view.protection),
            ago(view.started_unix_s, now),
            view.reason.code if view.reason else "",
        )
    return _warned(table, any(view.protection == "none" for view in runs))


def run_page(view: RunView, now: float) -> RenderableType:
    """All about one run; also what ``watch`` draws again and again."""
    facts = _facts(
        {
            "run": view.run,
            "study": f"{view.study}  {view.study_digest.hex()[:12]}",
            "state": f"{view.state}, started {ago(view.started_unix_s, now)}",
            "why": str(view.reason) if view.reason else "",
            "protection": view.protection,
            "added by": f"an attested machine ({', '.join(view.attested_by)})" if view.attested_by else "",
            "model": "released, `quorate model fetch` brings it" if view.model_available else "",
        }
    )
    done = len(view.results) if view.state is not RunState.COMPLETED else view.rounds
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=max(view.rounds, 1), completed=done, width=40), f"{done} of {view.rounds} rounds")
    parts: list[RenderableType] = [facts, bar]
    if view.sites and not view.state.is_over:
        parts += [Text(), Text(f"round {view.round_number}, {view.phase}"), _progress_table(view)]
    if view.attested_by:
        parts += [Text(), _appraisals_table(view.appraisals, now), *map(_remark, remarks_about(view.attested_by))]
    if view.results:
        parts += [Text(), _results_table(view.results)]
    return _warned(Group(*parts), view.protection == "none")


def round_line(result: RoundResult, rounds: int) -> str:
    """One round that counted, in one line."""
    metrics = "  ".join(f"{name} {result.metrics[name]:.4f}" for name in metric_names([result]))
    missing = ", ".join(f"{site} {code}" for site, code in sorted(result.missing.items()))
    return (
        f"round {result.round_number} of {rounds}: {len(result.contributed)} sites"
        + (f" (without {missing})" if missing else "")
        + (f"  {metrics}" if metrics else "")
        + f"  {sum(result.phase_seconds.values()):.2f} s"
    )


def metric_names(results: Iterable[RoundResult]) -> list[str]:
    """All metrics of some rounds, in the order in which they are shown."""
    names = {name for result in results for name in result.metrics}
    return [name for name in _METRICS_FIRST if name in names] + sorted(names - set(_METRICS_FIRST))


def _appraisals_table(appraisals: Iterable[SiteAppraisal], now: float) -> Table:
    table = _table("site", "the machine", "", "evidence", "asked", "heard")
    for one in appraisals:
        kind = Text(one.kind, style="bold red" if one.kind == Kind.SOFTWARE else "")
        asked, heard = (ago(moment, now) if moment else "" for moment in (one.asked_unix_s, one.heard_unix_s))
        table.add_row(one.site, _state(one.state), one.code, kind, asked, heard)
    return table


def _versions(study: Study) -> str:
    return "\n".join(map(str, study.attestation.policy.versions())) if study.attestation is not None else ""


def _remarks(study: Study) -> list[Text]:
    return [_remark(text) for text in study.attestation.remarks] if study.attestation is not None else []


def _remark(text: str) -> Text:
    return Text(text, style="bold red" if text == SOFTWARE else "")


def _progress_table(view: RunView) -> Table:
    table = _table("site", "state", "")
    for site in view.sites:
        table.add_row(site.site, _state(site.state), site.code)
    return table


def _results_table(results: Sequence[RoundResult]) -> Table:
    shown = results[-LATEST_ROUNDS:]
    names = metric_names(shown)
    table = _table("round", "sites", *names, "seconds", "missing")
    for result in shown:
        table.add_row(
            str(result.round_number),
            str(len(result.contributed)),
            *(f"{result.metrics[name]:.4f}" if name in result.metrics else "" for name in names),
            f"{sum(result.phase_seconds.values()):.2f}",
            ", ".join(f"{site} {code}" for site, code in sorted(result.missing.items())),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _facts(facts: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return grid


def _state(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))


def _protection(mode: str) -> Text:
    return Text("NONE", style="bold red") if mode == "none" else Text(mode)


def _warned(content: RenderableType, unprotected: bool) -> RenderableType:
    return Group(content, warning()) if unprotected else content


def _guest_app(view: StudyView) -> str:
    return view.study.guest.server_app if view.study.guest else ""
