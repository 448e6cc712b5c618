"""Draws a dashboard of ours as a picture, from a Prometheus and without a Grafana.

    python deploy/grafana/render.py dashboards/consortium.json --prometheus http://127.0.0.1:9090 -o consortium.png

For whoever changes a dashboard and wants to see it, and for a look where there is no Grafana. It knows the kinds of
panels that these dashboards have, and no others.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLUMNS, COLUMN_IN, ROW_IN, HEAD_IN = 24, 0.72, 0.46, 0.7
INSETS = {"timeseries": (0.75, 0.45, 0.25, 0.75), "bargauge": (2.6, 0.45, 0.25, 0.15)}
POINTS = 240
TIMEOUT_S = 30.0
INK, FAINT, PAPER, CARD = "#20242b", "#8a8f98", "#f4f5f7", "#ffffff"
PALETTE = ("#3a6ea5", "#3d8b5f", "#d9942b", "#8e5ea2", "#c4473c", "#4aa3a2", "#8a6d4a", "#d06fa0", "#6b7f2a", "#6f7fd0")

Series = list[tuple[dict[str, str], list[float], list[float]]]
"""Labels, moments in Unix seconds, values."""


@dataclass(frozen=True, slots=True)
class Source:
    """One Prometheus and the time that is shown."""

    url: str
    start_s: float
    end_s: float
    scrape_s: float = 15.0

    @property
    def step_s(self) -> float:
        return max(1.0, (self.end_s - self.start_s) / POINTS)

    def filled(self, expression: str) -> str:
        """A query with what Grafana puts in the place of its variables; all daemons are shown."""
        span = f"{max(1, round(self.end_s - self.start_s))}s"
        rate = f"{round(max(4 * self.scrape_s, self.step_s + self.scrape_s))}s"
        filled = expression.replace("$__rate_interval", rate).replace("$__range", span).replace("$instance", ".*")
        if "$" in filled:
            raise ValueError(f"a variable that is not known here, in {expression}")
        return filled

    def series(self, expression: str) -> Series:
        query = {"start": self.start_s, "end": self.end_s, "step": self.step_s}
        found = self._ask("query_range", expression, query)
        return [(one["metric"], *_columns(one["values"])) for one in found]

    def now(self, expression: str) -> Series:
        found = self._ask("query", expression, {"time": self.end_s})
        return [(one["metric"], *_columns([one["value"]])) for one in found]

    def _ask(self, what: str, expression: str, query: dict[str, float]) -> list[Any]:
        words = urllib.parse.urlencode({"query": self.filled(expression), **query})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/api/v1/{what}?{words}", timeout=TIMEOUT_S) as answer:
            return list(json.load(answer)["data"]["result"])


def _days(moments: list[float]) -> list[float]:
    """Unix seconds as matplotlib counts time."""
    return [moment / 86_400 for moment in moments]


def _columns(values: list[list[Any]]) -> tuple[list[float], list[float]]:
    return [float(moment) for moment, _ in values], [float(value) for _, value in values]


# --- how figures are written ---


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {units[power]}".strip()


def _seconds(value: float) -> str:
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms" if value else "0 s"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if abs(value) >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """A figure for people, in a unit as Grafana names it."""
    if not math.isfinite(value):
        return "no limit" if value > 0 else "–"
    units: dict[str, Callable[[float], str]] = {
        "percentunit": lambda v: f"{100 * v:.{decimals or 0}f} %",
        "s": _seconds,
        "d": lambda v: f"{v:.{decimals or 0}f} d",
        "bytes": lambda v: _scaled(v, 1024, ("B", "KiB", "MiB", "GiB", "TiB")),
        "Bps": lambda v: _scaled(v, 1000, ("B/s", "kB/s", "MB/s", "GB/s")),
        "short": lambda v: _scaled(v, 1000, ("", "K", "M", "G")) if decimals is None else f"{v:.{decimals}f}",
    }
    return units[unit](value)


def _legend(pattern: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        pattern = pattern.replace("{{" + label + "}}", value)
    return pattern


def _threshold_colour(steps: list[dict[str, Any]], value: float) -> str:
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return str(reached[-1])


# --- the kinds of panels ---


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def draw_stat(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    found = source.now(panel["targets"][0]["expr"])
    values = [values[0] for _, _, values in found if not math.isnan(values[0])]
    if not values:
        axes.text(0.5, 0.5, defaults.get("noValue", "no data"), ha="center", va="center", color=FAINT, fontsize=15)
        return
    text = written(values[0], defaults["unit"], defaults.get("decimals"))
    colour = _threshold_colour(defaults["thresholds"]["steps"], values[0])
    for mapping in defaults.get("mappings", ()):
        shown = mapping["options"].get(f"{values[0]:g}")
        if shown:
            text, colour = shown["text"], shown["color"]
    axes.text(0.5, 0.5, text, ha="center", va="center", color=colour, fontsize=20, fontweight="bold")


def draw_timeseries(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    lines = [
        (_legend(target["legendFormat"], labels), moments, values)
        for target in panel["targets"]
        for labels, moments, values in source.series(target["expr"])
        if any(math.isfinite(value) for value in values)
    ]
    lines.sort(key=lambda line: line[0])
    fixed = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
    }
    free = iter(PALETTE * 10)
    colours = [fixed.get(name) or next(free) for name, _, _ in lines]
    if custom["stacking"]["mode"] == "normal":
        _draw_stack(axes, lines, colours, source, is_bars=custom["drawStyle"] == "bars")
    else:
        for (name, moments, values), colour in zip(lines, colours, strict=True):
            finite = [value if math.isfinite(value) else math.nan for value in values]
            if custom["drawStyle"] == "bars":
                axes.bar(_days(moments), finite, width=source.step_s / 86_400, color=colour, label=name, alpha=0.85)
            else:
                style = "steps-post" if custom["lineInterpolation"] == "stepAfter" else "default"
                axes.plot(_days(moments), finite, color=colour, label=name, linewidth=1.6, drawstyle=style)
    if "thresholdsStyle" in custom:
        for step in defaults["thresholds"]["steps"][1:]:
            axes.axhline(step["value"], color=step["color"], linewidth=1, linestyle="--")
    _frame_plot(axes, defaults, unit, source, has_lines=bool(lines))


def _draw_stack(
    axes: Axes,
    lines: list[tuple[str, list[float], list[float]]],
    colours: list[str],
    source: Source,
    *,
    is_bars: bool,
) -> None:
    moments = sorted({moment for _, times, _ in lines for moment in times})
    below = [0.0] * len(moments)
    for (name, times, values), colour in zip(lines, colours, strict=True):
        known = {t: value for t, value in zip(times, values, strict=True) if math.isfinite(value)}
        heights = [known.get(moment, 0.0) for moment in moments]
        above = [base + height for base, height in zip(below, heights, strict=True)]
        if is_bars:
            axes.bar(_days(moments), heights, bottom=below, width=source.step_s / 86_400, color=colour, label=name)
        else:
            axes.fill_between(
                _days(moments), below, above, color=colour, alpha=0.75, label=name, linewidth=0, step="post"
            )
        below = above


def _frame_plot(axes: Axes, defaults: dict[str, Any], unit: str, source: Source, *, has_lines: bool) -> None:
    axes.set_xlim(*_days([source.start_s, source.end_s]))
    quarter = (source.end_s - source.start_s) / 4
    axes.set_xticks(_days([source.start_s + (each + 0.5) * quarter for each in range(4)]))
    shown = "%H:%M" if source.end_s - source.start_s >= 600 else "%H:%M:%S"
    axes.xaxis.set_major_formatter(DateFormatter(shown))
    decimals = 1 if unit == "percentunit" and axes.dataLim.ymax < 0.04 else None
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=defaults.get("decimals") == 0 and unit == "short"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit, decimals)))
    if not has_lines:
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=FAINT, fontsize=12)
    elif defaults.get("min") == 0:
        top = axes.dataLim.ymax
        axes.set_ylim(0, defaults.get("max") or (1.08 * top if top > 0 else 1))
    axes.tick_params(labelsize=8, colors=FAINT, length=0)
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for name, side in axes.spines.items():
        side.set_visible(name == "bottom")
        side.set_color("#c7ccd4")
    if has_lines:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.01, -0.13),
            ncols=max(1, int(axes.get_window_extent().width / 130)),
            fontsize=8,
            frameon=False,
            handlelength=1,
            columnspacing=1.2,
            labelcolor=INK,
        )


def draw_bargauge(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    defaults, (target,) = panel["fieldConfig"]["defaults"], panel["targets"]
    found = sorted(
        (_legend(target["legendFormat"], labels), values[0]) for labels, _, values in source.now(target["expr"])
    )
    if not found:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color=FAINT, fontsize=12)
        return
    places = list(range(len(found)))
    colours = [_threshold_colour(defaults["thresholds"]["steps"], value) for _, value in found]
    axes.barh(places, [defaults["max"]] * len(found), color="#e9ebef", height=0.6)
    axes.barh(places, [value for _, value in found], color=colours, height=0.6)
    axes.set_yticks(places, [name for name, _ in found], fontsize=9, color=INK)
    axes.tick_params(length=0)
    axes.set_xlim(0, defaults["max"] * 1.12)
    axes.invert_yaxis()
    for place, (_, value) in zip(places, found, strict=True):
        text = written(value, defaults["unit"], defaults.get("decimals"))
        axes.text(defaults["max"] * 1.02, place, text, va="center", fontsize=9, color=INK)


def draw_table(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    columns = panel["options"]["columns"]
    found = source.now(panel["targets"][0]["expr"])
    rows = sorted([labels.get(column, "") for column in columns] for labels, _, _ in found)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if not rows:
        empty = panel["fieldConfig"]["defaults"].get("noValue", "no data")
        axes.text(0.5, 0.5, empty, ha="center", va="center", color=FAINT, fontsize=12)
        return
    height = max(0.06, min(0.2, 1 / (len(rows) + 1)))
    for number, row in enumerate([columns, *rows]):
        for place, cell in enumerate(row):
            style = {"color": FAINT, "fontsize": 8} if number == 0 else {"color": INK, "fontsize": 9}
            axes.text(place / len(columns), 1 - (number + 0.5) * height, cell, va="center", **style)


DRAWN = {
    "stat": draw_stat,
    "timeseries": draw_timeseries,
    "bargauge": draw_bargauge,
    "table": draw_table,
}


def render(dashboard: dict[str, Any], source: Source) -> Figure:
    """The whole dashboard, in its own grid."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    width, height = COLUMNS * COLUMN_IN, rows * ROW_IN + HEAD_IN
    figure = plt.figure(figsize=(width, height), facecolor=PAPER)
    figure.text(0.012, 1 - 0.42 / height, dashboard["title"], fontsize=17, fontweight="bold", color=INK)
    figure.text(0.988, 1 - 0.42 / height, dashboard["description"], fontsize=10, color=FAINT, ha="right")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        box = Box(place["x"] * COLUMN_IN, HEAD_IN + place["y"] * ROW_IN, place["w"] * COLUMN_IN, place["h"] * ROW_IN)
        if panel["type"] == "row":
            title = _axes(figure, box, (0.1, 0, 0, 0))
            title.text(0.01, 0.3, panel["title"], fontsize=12, color=INK, va="center")
            continue
        card = _axes(figure, box, (0.06, 0.06, 0.06, 0.06), CARD)
        card.text(0.14 / box.wide, 1 - 0.2 / box.high, panel["title"], fontsize=10, color=INK, va="center")
        DRAWN[panel["type"]](_axes(figure, box, INSETS.get(panel["type"], (0.2, 0.42, 0.2, 0.15))), panel, source)
    return figure


@dataclass(frozen=True, slots=True)
class Box:
    """A place on the figure, in inches from its upper left corner."""

    left: float
    top: float
    wide: float
    high: float


def _axes(figure: Figure, box: Box, inset: tuple[float, float, float, float], colour: str = "none") -> Axes:
    """Bare axes in a box; ``inset`` is left, top, right and bottom, in inches."""
    width, height = figure.get_size_inches()
    left, top, right, bottom = inset
    low = height - box.top - box.high + bottom
    place = (
        (box.left + left) / width,
        low / height,
        (box.wide - left - right) / width,
        (box.high - top - bottom) / height,
    )
    axes = figure.add_axes(place, facecolor=colour)
    _bare(axes)
    return axes


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a dashboard from a Prometheus, without a Grafana.")
    parser.add_argument("dashboard", type=Path)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back")
    parser.add_argument("--scrape", type=float, default=15.0, help="seconds between two scrapes of that Prometheus")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .png or .svg file")
    given = parser.parse_args()
    now = time.time()
    source = Source(given.prometheus.rstrip("/"), now - 60 * given.minutes, now, given.scrape)
    figure = render(json.loads(given.dashboard.read_text(encoding="utf-8")), source)
    figure.savefig(given.output, dpi=80)


if __name__ == "__main__":
    main()
