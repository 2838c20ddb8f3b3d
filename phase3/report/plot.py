"""A plot's frame: axes with round ticks, and the pixels of a point, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from phase3.report.markup import Markup, joined, tag

WIDTH = 440.0
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_MOST_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """A scale from *low* to *high* with its ticks (value and label)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return where *value* lies between the ends, 0 to 1 inside them."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Frame:
    """The rectangle in which a plot is drawn."""

    x: Axis
    y: Axis
    height: float = 280.0
    left: float = 58.0
    right: float = 22.0
    top: float = 26.0
    bottom: float = 44.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixels of a point."""
        wide = WIDTH - self.left - self.right
        high = self.height - self.top - self.bottom
        return self.left + self.x.share(x) * wide, self.height - self.bottom - self.y.share(y) * high

    def drawn(self, label: str, *marks: Markup) -> Markup:
        """Return the whole picture; *label* says what it shows to who cannot see it."""
        box = f"0 0 {WIDTH:g} {self.height:g}"
        return tag("svg", self._grid(), *marks, class_="plot", viewbox=box, role="img", aria_label=label)

    def path(self, points: Iterable[tuple[float, float]], **attributes: str) -> Markup:
        """Return a line through *points*."""
        pixels = (self.at(x, y) for x, y in points)
        steps = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(pixels))
        return tag("path", d=steps, **attributes)

    def dot(self, x: float, y: float, note: str, radius: float = 4.0, **attributes: str) -> Markup:
        """Return a point whose note a pointer shows."""
        left, top = self.at(x, y)
        return tag("circle", tag("title", note), cx=left, cy=top, r=radius, **attributes)

    def bar(self, start: tuple[float, float], end: tuple[float, float], **attributes: str) -> Markup:
        """Return a straight line between two points."""
        (x1, y1), (x2, y2) = self.at(*start), self.at(*end)
        return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)

    def _grid(self) -> Markup:
        right, floor = WIDTH - self.right, self.height - self.bottom
        parts: list[Markup] = []
        for value, label in self.y.ticks:
            _, y = self.at(self.x.low, value)
            parts.append(tag("line", x1=self.left, y1=y, x2=right, y2=y, class_="grid"))
            parts.append(tag("text", label, x=self.left - 8, y=y + 4, class_="tick end"))
        for value, label in self.x.ticks:
            x, _ = self.at(value, self.y.low)
            parts.append(tag("line", x1=x, y1=floor, x2=x, y2=floor + 4, class_="axis"))
            parts.append(tag("text", label, x=x, y=floor + 18, class_="tick middle"))
        parts.append(tag("line", x1=self.left, y1=floor, x2=right, y2=floor, class_="axis"))
        middle = (self.left + right) / 2
        parts.append(tag("text", self.x.title, x=middle, y=self.height - 5, class_="name middle"))
        parts.append(tag("text", self.y.title, x=4, y=14, class_="name"))
        return joined(*parts)


def linear(values: Sequence[float], title: str, *, from_zero: bool = True, count: int = 5) -> Axis:
    """Return an axis with round ticks that holds all *values*."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        pad = abs(high) * 0.05 or 1.0
        low, high = (0.0 if from_zero and low >= 0 else low - pad), high + pad
    step = _step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((index * step, _short(index * step, step)) for index in range(first, last + 1))
    return Axis(first * step, last * step, ticks, title)


def logarithmic(values: Sequence[float], title: str) -> Axis:
    """Return a logarithmic axis, from and to 1, 2 or 5 of a decade, that holds the positive *values*."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    marks = [mark * 10.0**decade for decade in range(first, last + 1) for mark in (1.0, 2.0, 5.0)]
    low = max(mark for mark in marks if mark <= min(values) * (1 + 1e-9))
    high = min(mark for mark in marks if mark > low * 1.5 and mark >= max(values) * (1 - 1e-9))
    within = [mark for mark in marks if low <= mark <= high]
    if len(within) > _MOST_TICKS:
        every = -(-(last - first) // _MOST_TICKS)
        within = [10.0**decade for decade in range(first, last + 1, every) if low <= 10.0**decade <= high]
    return Axis(low, high, tuple((mark, _short(mark, mark)) for mark in within), title, is_log=True)


def named(values: Sequence[float], title: str) -> Axis:
    """Return an axis on which each value has the same distance to the next doubling."""
    low, high = min(values), max(values)
    pad = 1.3 if high > low else 2.0
    ticks = tuple((value, f"{value:g}") for value in sorted(set(values)))
    return Axis(low / pad, high * pad, ticks, title, is_log=True)


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))


def _short(value: float, step: float) -> str:
    if value == 0:
        return "0"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.{_decimals(step / unit)}f}{letter}"
    return f"{value:,.{_decimals(step)}f}"


def _decimals(step: float) -> int:
    for decimals in range(8):
        if abs(round(step, decimals) - step) <= 1e-6 * step:
            return decimals
    return 8
