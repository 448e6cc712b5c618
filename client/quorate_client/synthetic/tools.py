"""The generator, the report and its page as they are shipped, for ``making``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quorate_client.approval.policy import Policy
from quorate_client.synthetic.generator import GENERATOR, generate, plan
from quorate_client.synthetic.limits import promise_refusals
from quorate_client.synthetic.making import Tools
from quorate_client.synthetic.report.assess import assess
from quorate_client.synthetic.report.page import render_html
from quorate_client.synthetic.report.report import Report

_DECIDE_A_TABLE = (
    "quorate_client.synthetic.digits",
    "quorate_client.synthetic.generator",
    "quorate_client.synthetic.identifying.identifiers",
    "quorate_client.synthetic.marking.watermark",
    "quorate_client.tasks.data.datasets",
)
_NO_LIMIT = 1.0


def shipped_tools() -> Tools:
    return Tools(GENERATOR, _DECIDE_A_TABLE, plan, generate, assess, _page)


def report_page(figures: Mapping[str, Any], lineage: Mapping[str, Any], policy: Policy) -> str:
    """The page of a report that was kept. Raises DataError."""
    return _page(Report.from_json(figures), lineage, policy)


def _page(report: Report, lineage: Mapping[str, Any], policy: Policy) -> str:
    risk, loss = policy.synthetic.largest_risk, policy.synthetic.largest_utility_loss
    return render_html(
        report,
        lineage,
        refused=promise_refusals(report.epsilon, policy),
        largest_risk=_NO_LIMIT if risk is None else risk,
        largest_utility_loss=_NO_LIMIT if loss is None else loss,
    )
