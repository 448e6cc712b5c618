"""What the demos' pages have in common: the look of the report on a synthetic set, and a plot of intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

LEFT, RIGHT, WIDTH, ROW, TOP = 250.0, 610.0, 640.0, 27.0, 14.0


@dataclass(frozen=True, slots=True)
class Dot:
    """A row of the plot: a figure with its interval, if it has one."""

    name: str
    found: float
    low: float | None = None
    high: float | None = None
    is_main: bool = False


def environment(package: str) -> Environment:
    """For the templates of a demo, which extend ``page.html``.

    ``report.css`` and ``macros.html`` are those of the report on a synthetic set.
    """
    packages = (package, "demo.kit")
    report = PackageLoader("quorate_client.synthetic.report.page")
    loader = ChoiceLoader([*(PackageLoader(each, ".") for each in packages), report])
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {
        "decimals": decimals,
        "signed": signed,
        "count": lambda number: f"{number:,.0f}".replace("-", "−"),
    }
    return found


def decimals(value: float, places: int = 2) -> str:
    """With a true minus, and none before zero."""
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, places: int = 2) -> str:
    text = decimals(value, places)
    return text if text[0] == "−" or float(text) == 0 else f"+{text}"


def intervals(rows: Sequence[Dot], low: float, high: float, step: float, finding: str) -> Markup:
    """Each row's figure as a point, its interval as a line; the main ones stand out by shape, weight and colour.

    Args:
        low, high, step: Of the axis.
        finding: What the plot shows, for those who do not see it.
    """
    base = TOP + ROW * len(rows)

    def at(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (RIGHT - LEFT)

    parts = []
    for number in range(round((high - low) / step) + 1):
        tick = low + number * step
        parts.append(
            Markup(
                '<path class="grid" d="M{x:.1f} {top:g}V{base:g}"/>'
                '<text class="mid" x="{x:.1f}" y="{y:g}">{word}</text>'
            ).format(x=at(tick), top=TOP, base=base, y=base + 18, word=f"{tick:g}")
        )
    parts += [_row(dot, TOP + ROW * (place + 0.5), at) for place, dot in enumerate(rows)]
    return Markup('<svg class="plot large" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, base + 26, finding, Markup("").join(parts)
    )


def _row(dot: Dot, y: float, at: Callable[[float], float]) -> Markup:
    line = Markup("")
    if dot.low is not None and dot.high is not None:
        line = Markup('<path class="ci" d="M{0:.1f} {2:.1f}H{1:.1f}"/>').format(at(dot.low), at(dot.high), y)
    x = at(dot.found)
    mark = Markup('<rect class="pt" x="{:.1f}" y="{:.1f}" width="7" height="7"/>').format(x - 3.5, y - 3.5)
    if dot.is_main:
        mark = Markup('<circle class="pt-a" cx="{:.1f}" cy="{:.1f}" r="6"/>').format(x, y)
    return Markup('<text class="end t-ink{}" x="{:g}" y="{:.1f}">{}</text>{}{}').format(
        " t-b" if dot.is_main else "", LEFT - 12, y + 4, dot.name, line, mark
    )
