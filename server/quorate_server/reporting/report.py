"""The report of a run: what was agreed, who took part, what came out, and what the server could see.

``report_json`` is for programs, ``report_html`` is the same content as one page that needs nothing beside itself: no
script, no font, no network. Both are made from what an operator may see of a run and from the study that every site
approved, so a report reveals nothing that the operator could not ask for anyway.
"""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from quorate.attestation.appraisal import SOFTWARE
from quorate.errors import QuorateError
from quorate.privacy.statement import evaluation_statement, privacy_statement
from quorate.privacy.training_data import training_data_statement
from quorate.rounds.run import RoundResult, RunView, SiteAppraisal
from quorate.study.study import Study
from quorate_server.reporting.disclosure import limits, protection_warning, server_could_see

FORMAT = "quorate.report/1"
MAX_TABLE_ROUNDS = 200


def report_json(view: RunView, study: Study, now: float) -> dict[str, Any]:
    """The report for programs: JSON-able, keys stable within ``FORMAT``. A number that is not finite becomes null.

    Args:
        view: The run.
        study: Its study.
        now: Unix seconds of the server's clock.
    """
    return {
        "format": FORMAT,
        "generated_unix_s": now,
        "run": _run(view, now),
        "protection": {"mode": view.protection, "warning": protection_warning(view.protection)},
        "attestation": study.attestation.told() if study.attestation is not None else None,
        "training_data": _training_data(view, study),
        "privacy": _privacy(study),
        "evaluation": list(evaluation_statement(study)),
        "sites": _sites(view, study),
        "rounds": [_round(result) for result in view.results],
        "metrics": {name: _summary(view.results, name) for name in metric_names(view.results)},
        "server_could_see": list(
            server_could_see(view.kind, view.protection, is_attested=study.attestation is not None)
        ),
        "study": {"digest": view.study_digest.hex(), "terms": study.model_dump(mode="json")},
        "limits": list(limits(view.state, study)),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("quorate", "flwr", "grpcio")},
    }


def report_html(view: RunView, study: Study, now: float) -> str:
    """The report for people: one page without any reference to the outside.

    Takes a second or two for the figures, so call it outside the event loop.
    """
    from quorate_server.reporting import figures  # late: it loads matplotlib, a second and 50 MB

    environment = Environment(
        loader=PackageLoader("quorate_server.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "when": _when,
        "duration": _duration,
        "size": _size,
        "number": _number,
        "metric": metric_label,
        "pretty": _pretty,
    }
    report = report_json(view, study, now)
    return environment.get_template("report.html").render(
        report,
        figures=figures.draw(view, study) if view.results else (),
        software=SOFTWARE,
        headline=_headline(report["metrics"]),
        shown_rounds=report["rounds"][-MAX_TABLE_ROUNDS:],
    )


def metric_names(results: Sequence[RoundResult]) -> tuple[str, ...]:
    """All metrics of a run, in the order of their first appearance."""
    return tuple(dict.fromkeys(name for result in results for name in result.metrics))


def generalisation_gap(results: Sequence[RoundResult]) -> dict[str, Any] | None:
    """The loss on the records that were trained on beside that on held-out ones, of the last round that tells both.

    Both are pooled over the sites: no site's own figure is in them. None where privacy keeps one of them untold.
    """
    for result in reversed(results):
        training, held_out = (result.metrics.get(name, math.nan) for name in ("train_loss", "loss"))
        if math.isfinite(training) and math.isfinite(held_out):
            return {
                "round": result.round_number,
                "training_loss": training,
                "held_out_loss": held_out,
                "difference": held_out - training,
            }
    return None


def metric_label(name: str) -> str:
    """How a metric is called in front of people."""
    return "AUC" if name == "auc" else name.replace("_", " ")


def _run(view: RunView, now: float) -> dict[str, Any]:
    end = view.changed_unix_s if view.state.is_over else now
    return {
        "id": view.run,
        "name": view.study,
        "kind": view.kind,
        "state": str(view.state),
        "is_over": view.state.is_over,
        "reason": view.reason and _reason(view.reason),
        "rounds_planned": view.rounds,
        "rounds_counted": len(view.results),
        "round": view.round_number,
        "phase": view.phase,
        "started_unix_s": view.started_unix_s,
        "changed_unix_s": view.changed_unix_s,
        "seconds": max(0.0, end - view.started_unix_s),
        "bytes_up": sum(result.bytes_up for result in view.results),
        "bytes_down": sum(result.bytes_down for result in view.results),
        "model_available": view.model_available,
    }


def _training_data(view: RunView, study: Study) -> dict[str, Any]:
    """Whose records were trained on, and where they were made ones how much worse the model is on people's."""
    told = study.training_data != "real"
    return {
        "kind": study.training_data,
        "statement": list(training_data_statement(study)),
        "gap": generalisation_gap(view.results) if told else None,
    }


def _privacy(study: Study) -> dict[str, Any]:
    statement = privacy_statement(study)
    return {
        "summary": study.privacy.summary if study.privacy else None,
        "plain": list(statement.plain),
        "exact": list(statement.exact),
    }


def _reason(error: QuorateError) -> dict[str, str]:
    return {
        "code": error.code,
        "what": error.what,
        "expected": error.expected,
        "got": error.got,
        "action": error.action,
    }


def _sites(view: RunView, study: Study) -> list[dict[str, Any]]:
    progress = {} if view.state.is_over else {one.site: one for one in view.sites}
    appraisals = {one.site: one for one in view.appraisals}
    described = []
    for site, name in zip(study.sites, study.site_names, strict=True):
        codes = Counter(result.missing[name] for result in view.results if name in result.missing)
        now = progress.get(name)
        described.append(
            {
                "name": site.name,
                "fingerprint": site.fingerprint,
                "rounds_contributed": sum(name in result.contributed for result in view.results),
                "rounds_missed": dict(sorted(codes.items())),
                "now": {"state": str(now.state), "code": now.code} if now else None,
                "appraisal": _appraisal(appraisals[name]) if name in appraisals else None,
            }
        )
    return described


def _appraisal(one: SiteAppraisal) -> dict[str, Any]:
    return {
        "state": str(one.state),
        "code": one.code,
        "kind": one.kind,
        "asked_unix_s": one.asked_unix_s,
        "heard_unix_s": one.heard_unix_s,
    }


def _round(result: RoundResult) -> dict[str, Any]:
    return {
        "round": result.round_number,
        "contributed": list(result.contributed),
        "missing": dict(result.missing),
        "metrics": {name: _finite(value) for name, value in result.metrics.items()},
        "phase_seconds": {phase: _finite(seconds) for phase, seconds in result.phase_seconds.items()},
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
    }


def _summary(results: Sequence[RoundResult], name: str) -> dict[str, Any] | None:
    """First, last, lowest and highest value of a metric, each with its round; None if it was never a finite number."""
    points = [
        {"round": result.round_number, "value": result.metrics[name]}
        for result in results
        if math.isfinite(result.metrics.get(name, math.nan))
    ]
    if not points:
        return None
    by_value = sorted(points, key=lambda point: point["value"])
    return {"first": points[0], "last": points[-1], "lowest": by_value[0], "highest": by_value[-1]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _headline(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics that open the page: those that everybody looks for, else the first."""
    known = [name for name, summary in metrics.items() if summary]
    return [name for name in ("auc", "accuracy", "loss") if name in known] or known[:3]


# --- how values read on the page --------------------------------------------------------------------------------------


def _when(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC" if unix_s else "–"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 10):
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10 or value == 0 else f"{value:.5g}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
