"""The report before use: what a synthetic set gives away of the records behind it, and what it is good for.

``assess`` measures, ``Report`` holds the figures and what limits are on, ``render_html`` shows them to people. The
order is that of the Singapore regulator's guide on synthetic data (PDPC 2024) after preparing and generating: evaluate,
then mitigate. Everything here is computed on real records and without noise: no epsilon covers it, and it stays at the
site.
"""

from quorate_client.synthetic.report.assess import assess
from quorate_client.synthetic.report.page import render_html
from quorate_client.synthetic.report.report import Report

__all__ = ["Report", "assess", "render_html"]
