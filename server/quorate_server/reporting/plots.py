"""The figures of a run's report, as SVG that stands inside an HTML page.

The only importer of matplotlib, which takes a second to load: import this module late. Figures are built by hand,
without pyplot, and drawn by the SVG backend, so nothing outlives a call. Text stays text (searchable, small), and
colours that must follow the page's light or dark theme are CSS variables of the page.

Series differ in colour (Okabe and Ito's palette, told apart by colour-blind readers), in dash and in marker. Where
there are more rounds than columns can be told apart, a column stands for several rounds and the figure says so.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from quorate.process.printable import printable

MAX_SERIES = 6
MAX_COLUMNS = 120

_WIDTH_IN = 7.2
_HEIGHT_IN = 2.7
# Drawn in Okabe and Ito's colours; in the page each becomes a variable, so that a dark page can lighten it.
_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
_INK, _RULE, _GAP = "#010203", "#040506", "#070809"
_PAGE_COLOURS = {
    _BLUE: "var(--series-1)",
    _VERMILION: "var(--series-2)",
    _GREEN: "var(--series-3)",
    _PURPLE: "var(--series-4)",
    _ORANGE: "var(--series-5)",
    _SKY: "var(--series-6)",
    _INK: "var(--ink-soft)",
    _RULE: "var(--rule)",
    _GAP: "var(--gap)",
}
_STYLES = (
    (_BLUE, "-", "o"),
    (_VERMILION, (0, (5, 2)), "s"),
    (_GREEN, (0, (1, 1.5)), "^"),
    (_PURPLE, (0, (5, 2, 1, 2)), "D"),
    (_ORANGE, (0, (3, 1, 1, 1, 1, 1)), "v"),
    (_SKY, (0, (8, 3)), "P"),
)

# Text is written as text, and ids depend on the content alone: the same run gives the same bytes.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "quorate", "font.family": "sans-serif"})


@dataclass(frozen=True, slots=True)
class Series:
    """One value per round, not-a-number where a round has none."""

    label: str
    values: Sequence[float]


def lines(rounds: Sequence[int], series: Sequence[Series], unit: str, *, from_zero: bool) -> str:
    """Lines over the rounds, at most ``MAX_SERIES``. ``unit`` labels the vertical axis.

    Amounts are drawn from zero; an AUC that goes from 0.97 to 0.99 would be a flat line there.
    """
    figure, axes = _axes(_HEIGHT_IN)
    for one, (colour, dash, marker) in zip(series, _STYLES, strict=False):
        axes.plot(
            rounds,
            one.values,
            color=colour,
            linestyle=dash,
            linewidth=1.8,
            marker=marker if np.isfinite(one.values).sum() <= 40 else "",  # a lonely value is a marker or nothing
            markersize=4,
            label=_plain(one.label),
            clip_on=False,
            zorder=3,
        )
    _label(axes, rounds, unit)
    axes.margins(y=0.08)
    if from_zero:
        axes.set_ylim(0, _headroom(max(np.nanmax(one.values) for one in series)))
    _legend(axes)
    return _svg(figure)


def stacked(rounds: Sequence[int], series: Sequence[Series], unit: str) -> str:
    """Bars on top of one another, at most ``MAX_SERIES`` parts; a value that is not a number counts as nothing."""
    figure, axes = _axes(_HEIGHT_IN)
    columns = _columns(rounds)
    bottom = np.zeros(len(columns.starts))
    for one, (colour, _, _) in zip(series, _STYLES, strict=False):
        values = np.nan_to_num(np.asarray(one.values, dtype=np.float64))
        heights = np.array([values[start : start + columns.rounds].mean() for start in columns.starts])
        axes.bar(columns.middles, heights, columns.widths, bottom, color=colour, label=_plain(one.label), zorder=3)
        bottom += heights
    _label(axes, rounds, unit, margin=0.6)
    axes.set_ylim(0, _headroom(bottom.max()))
    if columns.rounds > 1:
        _note(axes, f"mean of {columns.rounds} rounds each")
    _legend(axes)
    return _svg(figure)


def grid(rounds: Sequence[int], contributed: Mapping[str, Sequence[bool]]) -> str:
    """One row per site: a full cell where it contributed to the round, a hollow one with a cross where it did not."""
    columns = _columns(rounds)
    figure, axes = _axes(0.62 + 0.25 * len(contributed))
    for row, flags in enumerate(contributed.values()):
        full = np.array([all(flags[start : start + columns.rounds]) for start in columns.starts])
        middles, widths = columns.middles[~full], columns.widths[~full]
        axes.bar(columns.middles[full], 0.66, columns.widths[full], row - 0.33, color=_BLUE, zorder=3)
        axes.bar(middles, 0.66, widths, row - 0.33, color=_GAP, edgecolor=_ORANGE, linewidth=1, zorder=3)
        axes.plot(middles, [row] * len(middles), "x", color=_VERMILION, markersize=4.5, zorder=4)
    axes.set_ylim(len(contributed) - 0.4, -0.6)
    axes.set_yticks(range(len(contributed)), [_plain(site) for site in contributed])
    _label(axes, rounds, "", margin=0.6)
    axes.grid(visible=False)
    if columns.rounds > 1:
        _note(axes, f"{columns.rounds} rounds a cell; a cross where at least one was missed")
    return _svg(figure)


def _axes(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_RULE)
    axes.tick_params(colors=_INK, labelsize=9, length=0, pad=5)
    axes.grid(visible=True, axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes: Axes, rounds: Sequence[int], unit: str, margin: float = 0.3) -> None:
    axes.set_xlabel("round", color=_INK, fontsize=9)
    if unit:
        axes.set_ylabel(_plain(unit), color=_INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set_xlim(rounds[0] - margin, rounds[-1] + margin)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=MAX_SERIES,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=2.4,
        columnspacing=1.6,
        borderaxespad=0.2,
    )


def _note(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="right", fontsize=8, color=_INK)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of a bar chart: the index of each one's first round, how many rounds each is for, and its place."""

    starts: range
    rounds: int
    middles: NDArray[np.float64]
    widths: NDArray[np.float64]


def _columns(rounds: Sequence[int]) -> _Columns:
    size = -(-len(rounds) // MAX_COLUMNS)
    starts = range(0, len(rounds), size)
    edges = np.array([*(rounds[start] - 0.5 for start in starts), rounds[-1] + 0.5])
    return _Columns(starts, size, (edges[1:] + edges[:-1]) / 2, np.diff(edges) * 0.82)


def _headroom(highest: float) -> float:
    return 1.1 * highest or 1.0


def _plain(label: str) -> str:
    """A label that matplotlib neither reads as mathematics nor hides, and that XML can hold."""
    text = printable(label[:60])
    return text.strip().lstrip("_").replace("$", r"\$") or "unnamed"


def _svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element that keeps to itself: ids of its own, colours, font and width of the page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    name = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"(?<=[el]: )#[0-9a-f]{6}", lambda found: _PAGE_COLOURS[found[0]], text)  # stroke: and fill:
