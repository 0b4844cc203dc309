"""Geometry of the charts; ``charts.html.j2`` draws it.

A plot's area is 1000 wide and 300 high and is stretched to the page. Text stands around it as
HTML, so that it stays legible on a narrow screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lighten_service.worker.report import words

WIDTH, HEIGHT = 1000.0, 300.0
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at a share of an axis, in percent from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A path, its CSS class, and what a pointer over it reads."""

    path: str
    style: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """One chart. ``title`` and ``description`` are what a screen reader reads."""

    title: str
    description: str
    unit: str
    y_ticks: Sequence[Tick]
    x_ticks: Sequence[Tick] = ()
    marks: Sequence[Mark] = ()
    # Labels beside single values: shares of both axes in percent, and the text.
    labels: Sequence[tuple[float, float, str]] = ()
    # (style, text) of each series.
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart. ``share``: length, 0 to 1 of the longest."""

    label: str
    share: float
    value: str
    style: str = "main"
    note: str = ""


@dataclass
class Scale:
    """A vertical axis from ``low`` to ``high``, widened to round values."""

    low: float
    high: float
    ticks: list[float] = field(init=False)

    def __post_init__(self) -> None:
        step = _round_step((self.high - self.low) / 4)
        first, last = math.floor(self.low / step + 1e-9), math.ceil(self.high / step - 1e-9)
        last = max(last, first + 1)
        self.ticks = [number * step for number in range(first, last + 1)]
        self.low, self.high = self.ticks[0], self.ticks[-1]

    def y(self, value: float) -> float:
        """Return the height of a value, from the top; values outside stand on the edge."""
        share = (self.high - value) / (self.high - self.low)
        return HEIGHT * min(max(share, 0.0), 1.0)

    def marks(self) -> list[Tick]:
        return [Tick(percent_y(self.y(value)), words.number(value)) for value in self.ticks]


def dot(x: float, y: float, style: str, title: str = "") -> Mark:
    # A line of no length with round ends stays round when the area is stretched.
    return Mark(f"M{_round(x)} {_round(y)}h0", f"dot {style}", title)


def span(x: float, top: float, bottom: float, style: str, title: str = "") -> Mark:
    """Return a vertical line."""
    return Mark(f"M{_round(x)} {_round(top)}V{_round(bottom)}", f"span {style}", title)


def rule(y: float, style: str, title: str = "") -> Mark:
    """Return a horizontal line over the whole width."""
    return Mark(f"M0 {_round(y)}H{_round(WIDTH)}", f"rule {style}", title)


def line(points: Sequence[tuple[float, float]], style: str) -> Mark:
    path = "L".join(f"{_round(x)} {_round(y)}" for x, y in points)
    return Mark(f"M{path}", f"line {style}")


def band(tops: Sequence[float], bottoms: Sequence[float], style: str) -> Mark:
    """Return the area between two step functions of equally wide steps."""
    width = WIDTH / len(tops)
    upper = [f"V{_round(y)}H{_round((at + 1) * width)}" for at, y in enumerate(tops)]
    lower = [f"V{_round(y)}H{_round(at * width)}" for at, y in reversed([*enumerate(bottoms)])]
    return Mark(f"M0 {_round(tops[0])}{''.join(upper)}{''.join(lower)}Z", f"band {style}")


def middle(index: int, total: int) -> float:
    """Return the place of one of ``total`` equally wide columns."""
    return WIDTH * (index + 0.5) / total


def ordinals(total: int, wanted: int = 6) -> list[Tick]:
    """Return labels 1, ... below equally wide columns."""
    step = max(int(_round_step(total / wanted)), 1)
    shown = [1, *range(step, total + 1, step)] if step > 1 else [*range(1, total + 1)]
    return [Tick(_round(middle(at - 1, total) / WIDTH * 100), str(at)) for at in shown]


def percent_x(x: float) -> float:
    return _round(x / WIDTH * 100)


def percent_y(y: float) -> float:
    return _round(y / HEIGHT * 100)


def _round_step(step: float) -> float:
    """Return the next larger step that people count in."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * each for each in _STEPS if power * each >= step * (1 - 1e-9))


def _round(value: float) -> float:
    return round(value, 2)
