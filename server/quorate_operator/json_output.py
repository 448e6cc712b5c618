"""What ``--json`` prints. The keys are stable: other programs read them. Times are Unix seconds, or null."""

from __future__ import annotations

from typing import Any

from quorate.attestation.appraisal import remarks_about
from quorate.errors import QuorateError
from quorate.rounds.run import RoundResult, RunView
from quorate_operator.views import PlanView, ReportView, SiteView, StudyView

Json = dict[str, Any]

UNPROTECTED = 'protection "none": the server can read every update of this study'
OF_TWO = "of two sites each learns the other's updates from the sum, whatever the protection"


def warnings_about(protection: str) -> list[str]:
    return [UNPROTECTED] if protection == "none" else []


def site_json(site: SiteView) -> Json:
    return {
        "name": site.name,
        "state": site.state,
        "fingerprint": site.member.fingerprint if site.member else None,
        "certificate_expires_unix_s": site.certificate_expires_unix_s or None,
        "invitation_expires_unix_s": site.invitation_expires_unix_s or None,
        "last_seen_unix_s": site.last_seen_unix_s or None,
        "version": site.version or None,
    }


def study_json(view: StudyView) -> Json:
    study = view.study
    return {
        "name": study.name,
        "digest": view.digest.hex(),
        "published_unix_s": view.published_unix_s,
        "kind": study.kind,
        "protection": study.protection.mode,
        "attestation": study.attestation.told() if study.attestation is not None else None,
        "training_data": study.training_data,
        "sites": [
            {
                "name": site.name,
                "fingerprint": site.fingerprint,
                "answer": answer.answer,
                "answered_unix_s": answer.at_unix_s or None,
            }
            for site, answer in view.roster()
        ],
        "study": study.model_dump(mode="json"),
        "warnings": warnings_about(study.protection.mode),
    }


def plan_json(view: PlanView) -> Json:
    study = view.study.study
    return {
        "study": study.name,
        "digest": view.study.digest.hex(),
        "approvals": {"given": view.approvals, "needed": study.needed_approvals},
        "quorum": {"ready": view.ready, "not_heard": view.not_heard, "needed": study.rounds.quorum},
        "can_start": view.can_start,
        "protection": study.protection_summary,
        "sites": [
            {"name": answer.site, "answer": answer.answer} | _report_json(report) for answer, report in view.rows()
        ],
    }


def _report_json(report: ReportView | None) -> Json:
    if report is None:
        return {"would_take_part": None, "code": None, "told_unix_s": None}
    return {
        "would_take_part": report.readiness.is_ready,
        "code": report.readiness.code or None,
        "told_unix_s": report.at_unix_s,
    }


def run_json(view: RunView) -> Json:
    return {
        "run": view.run,
        "study": view.study,
        "study_digest": view.study_digest.hex(),
        "kind": view.kind,
        "protection": view.protection,
        "attestation": attestation_json(view),
        "state": view.state,
        "reason": error_json(view.reason) if view.reason else None,
        "round": view.round_number,
        "rounds": view.rounds,
        "phase": view.phase,
        "sites": [{"site": site.site, "state": site.state, "code": site.code} for site in view.sites],
        "results": [_result_json(result) for result in view.results],
        "started_unix_s": view.started_unix_s or None,
        "changed_unix_s": view.changed_unix_s or None,
        "model_available": view.model_available,
        "warnings": warnings_about(view.protection),
    }


def attestation_json(view: RunView) -> Json | None:
    """What each site thinks of the machine that adds; None where the study demands none."""
    if not view.attested_by:
        return None
    return {
        "kinds": list(view.attested_by),
        "remarks": list(remarks_about(view.attested_by)),
        "sites": [
            {
                "site": one.site,
                "state": one.state,
                "code": one.code or None,
                "kind": one.kind or None,
                "asked_unix_s": one.asked_unix_s or None,
                "heard_unix_s": one.heard_unix_s or None,
            }
            for one in view.appraisals
        ],
    }


def _result_json(result: RoundResult) -> Json:
    return {
        "round": result.round_number,
        "contributed": list(result.contributed),
        "metrics": dict(sorted(result.metrics.items())),
        "phase_seconds": dict(result.phase_seconds),
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "missing": dict(sorted(result.missing.items())),
    }


def error_json(error: QuorateError) -> Json:
    return {
        "code": error.code,
        "what": error.what,
        "expected": error.expected,
        "got": error.got,
        "action": error.action,
    }
