"""The generator, the report and its page as they are shipped, for ``making``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quorate_client.synthetic.generator import GENERATOR, generate, plan
from quorate_client.synthetic.making import Tools
from quorate_client.synthetic.report.assess import assess
from quorate_client.synthetic.report.page import render_html
from quorate_client.synthetic.report.report import Report

_DECIDE_A_TABLE = (
    "quorate_client.synthetic.generator",
    "quorate_client.synthetic.identifiers",
    "quorate_client.synthetic.watermark",
)


def shipped_tools() -> Tools:
    return Tools(GENERATOR, _DECIDE_A_TABLE, plan, generate, assess, render_html)


def report_page(figures: Mapping[str, Any], lineage: Mapping[str, Any]) -> str:
    """The page of a report that was kept. Raises DataError."""
    return render_html(Report.from_json(figures), lineage)
