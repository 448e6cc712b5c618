"""Puts the page together: words from ``verdict``, plots from ``plots``, the rest from the template.

No script, no font, no network: the page can be kept, printed and sent to whoever decides within the site. All text that
came from elsewhere (names, words of the schema, the lineage) is escaped and printable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from quorate.process.printable import printable
from quorate_client.synthetic.report.page import plots, verdict
from quorate_client.synthetic.report.report import Report

LARGEST_RISK = 0.09
LARGEST_UTILITY_LOSS = 0.1
_SHOWN_COLUMNS = 12
_SHOWN_GROUPS = 8


def render_html(
    report: Report,
    lineage: Mapping[str, Any],
    *,
    refused: Sequence[str] = (),
    largest_risk: float = LARGEST_RISK,
    largest_utility_loss: float = LARGEST_UTILITY_LOSS,
) -> str:
    """The page.

    Args:
        lineage: Where the set comes from, shown key by key; ``name`` is what it is called.
        refused: Why the site refuses the promise with which it was made, in words.
        largest_risk: The site's limit on each risk.
        largest_utility_loss: The site's limit on the loss of AUC.
    """
    environment = Environment(
        loader=PackageLoader("quorate_client.synthetic.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "signed": _signed,
        "percent": _percent,
        "decimal": verdict.decimal,
        "count": lambda value: f"{value:,}",
        "plain": lambda text: printable(str(text)),
        "interval": lambda one: f"{_figure(one.low)} to {_figure(one.high)}",
    }
    lines, unit = verdict.risk_lines(report, largest_risk), str(lineage.get("source", {}).get("unit", "record"))
    return environment.get_template("report.html").render(
        report=report,
        lineage=_flat(lineage),
        name=str(lineage.get("name", "Synthetic set")),
        limits={"risk": largest_risk, "loss": largest_utility_loss},
        verdict=verdict.verdict(report, largest_risk, largest_utility_loss, refused),
        lead=verdict.lead(report, largest_risk, largest_utility_loss, refused),
        promise=verdict.promise(report, unit),
        unit=unit,
        not_shown=verdict.NOT_SHOWN,
        lines=lines,
        scale=plots.Scale([line.advantage for line in lines if line.advantage], largest_risk),
        loss=verdict.utility_result(report, largest_utility_loss),
        copies=verdict.copies_result(report),
        distances=_distances(report),
        groups=_groups(report),
    )


def _distances(report: Report) -> Any:
    """The columns that are least like the real ones, and the pairs, as one plot."""
    worst = sorted(report.fidelity.columns, key=lambda column: -column.distance)[:_SHOWN_COLUMNS]
    rows = [(column.name, column.distance, column.chance) for column in worst]
    rows.append(("pairs, median", report.fidelity.median_pair, report.fidelity.median_chance))
    rows += [("pairs, worst", pair.distance, pair.chance) for pair in report.fidelity.worst_pairs[:1]]
    finding = (
        f"Total variation: the column least like the real one is {worst[0].name} with {worst[0].distance:.3f}; "
        f"the median of all pairs is {report.fidelity.median_pair:.3f}."
    )
    return plots.dots(rows, printable(finding))


def _groups(report: Report) -> list[tuple[str, Any]]:
    """The groups whose rate is furthest from the real one."""
    all_of_them = [
        (column.name, group) for column in report.bias.columns for group in column.groups if group.gap is not None
    ]
    return sorted(all_of_them, key=lambda pair: (not pair[1].stands, -abs(pair[1].gap or 0.0)))[:_SHOWN_GROUPS]


def _flat(lineage: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Key and value, one a line; what is nested has its path."""
    found: list[tuple[str, str]] = []
    for key, value in lineage.items():
        name = f"{above} · {key}" if above else str(key)
        if isinstance(value, Mapping):
            found += _flat(value, name)
        elif isinstance(value, list | tuple):
            found.append((name, ", ".join(map(_in_words, value)) or "none"))
        elif key == "made_unix_s":
            found.append(("made", datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")))
        else:
            found.append((name, _in_words(value)))
    return [(name.replace("_", " "), value) for name, value in found]


def _in_words(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return "; ".join(f"{key} {_in_words(each)}".replace("_", " ") for key, each in value.items())
        case _:
            return str(value)


def _figure(value: float) -> str:
    """Three decimals and a true minus; no minus before zero."""
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _signed(value: float) -> str:
    text = _figure(value)
    return text if text[0] == "−" or float(text) == 0 else f"+{text}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
