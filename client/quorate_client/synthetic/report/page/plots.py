"""Plots as SVG inside the page, drawn by hand: a few lines and squares do not need a library.

Only classes of the style sheet, so that colours follow the page's light, dark or printed theme. Each has its numbers in
a table beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from quorate.process.printable import printable
from quorate_client.synthetic.report.figures import Interval

_WIDTH, _HEIGHT, _EDGE = 192.0, 24.0, 4.0
_LABEL, _ROW, _RIGHT = 140.0, 23.0, 300.0


class Scale:
    """Of a column of plots of one row each: from a little below zero to the largest figure."""

    def __init__(self, figures: Sequence[Interval], limit: float) -> None:
        highest = max([limit * 2, *(min(one.found * 1.05, 1.0) for one in figures)])
        self.high = next((end for end in (0.2, 0.5) if highest <= end), 1.0)
        self.low = -0.2 * self.high
        self.limit = limit

    def at(self, value: float) -> float:
        place = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return _EDGE + place * (_WIDTH - 2 * _EDGE)

    def row(self, figure: Interval) -> Markup:
        """Square: found; line: its interval, cut at the ends of the scale; dashes: nothing gained, and the limit."""
        low, found, high = (self.at(value) for value in (figure.low, figure.found, figure.high))
        return _svg(
            _WIDTH,
            _HEIGHT,
            "plot forest",
            Markup(
                '<path class="ref" d="M{zero:.1f} 0V24"/><path class="limit" d="M{limit:.1f} 0V24"/>'
                '<path class="ci" d="M{low:.1f} 12H{high:.1f}"/>'
                '<rect class="pt" x="{left:.1f}" y="8.5" width="7" height="7"/>'
            ).format(zero=self.at(0), limit=self.at(self.limit), low=low, high=high, left=found - 3.5),
        )

    def axis(self) -> Markup:
        ticks = [0.0, self.high / 2, self.high]
        marks = Markup("").join(
            Markup('<path class="axis" d="M{x:.1f} 2v4"/><text class="mid" x="{x:.1f}" y="18">{word}</text>').format(
                x=self.at(tick), word=f"{tick:g}"
            )
            for tick in ticks
        )
        line = Markup('<path class="axis" d="M{0:.1f} 2H{1:.1f}"/>').format(self.at(self.low), self.at(self.high))
        return _svg(_WIDTH, _HEIGHT, "plot forest", line + marks)


def dots(rows: Sequence[tuple[str, float, float]], finding: str) -> Markup:
    """Names with two values each, of which the second is a mark on the line: what chance alone makes."""
    height = _ROW * len(rows) + 34
    top = max([0.05, *(value for _, *values in rows for value in values)])
    end = next(end for end in (0.05, 0.1, 0.2, 0.5, 1.0) if top <= end)

    def at(value: float) -> float:
        return _LABEL + value / end * (_RIGHT - _LABEL)

    parts = [
        Markup(
            '<path class="grid" d="M{x:.1f} 8V{base:.1f}"/><text class="mid" x="{x:.1f}" y="{foot:.1f}">{word}</text>'
        ).format(x=at(tick), base=height - 26, foot=height - 10, word=f"{tick:g}")
        for tick in (0.0, end / 2, end)
    ]
    for place, (name, value, chance) in enumerate(rows):
        y = 22 + place * _ROW
        parts.append(
            Markup(
                '<text class="end t-ink" x="132" y="{text:.1f}">{name}</text>'
                '<path class="axis" d="M140 {y:.1f}H{x:.1f}"/><path class="chance" d="M{c:.1f} {up:.1f}v12"/>'
                '<circle class="pt-a" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
                '<text x="{beside:.1f}" y="{text:.1f}">{word}</text>'
            ).format(
                text=y + 4,
                name=_short(name),
                y=y,
                x=at(value),
                c=at(chance),
                up=y - 6,
                beside=max(at(value), at(chance)) + 9,
                word=f"{value:.3f}",
            )
        )
    return _svg(360.0, height, "plot", Markup("").join(parts), finding)


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 20 else text[:19] + "…"


def _svg(width: float, height: float, classes: str, content: Markup, finding: str = "") -> Markup:
    told = Markup('role="img" aria-label="{}"').format(finding) if finding else Markup('aria-hidden="true"')
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" {}>{}</svg>').format(classes, width, height, told, content)
