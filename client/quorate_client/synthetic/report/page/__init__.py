"""The report for people: one page that needs nothing beside itself."""

from quorate_client.synthetic.report.page.page import render_html

__all__ = ["render_html"]
