"""Curves as inline SVG: scales, ticks, paths. Lengths are in the units of the picture's viewBox."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fastcyclegan.runs.report.catalogue import Family
from fastcyclegan.runs.report.thinning import Point

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 408, 14, 204
# A logarithmic axis where the middle nine tenths of the values span more than this.
_SPAN = 20
# What is smoothed, and over which share of it.
_MANY, _SHARE = 100, 40
# Single marks can be told apart up to this number.
_FEW = 20


@dataclass(frozen=True)
class Line:
    """A curve with its name, its colour and its kind of line, as they go into a chart."""

    name: str
    points: Sequence[Point]
    hue: int
    dash: int = 0


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high``, placed from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` is; on a logarithmic axis what is not positive lies at its start."""
        low, high = self.low, self.high
        if self.logarithmic:
            value = max(value, low * 1e-6)
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About ``count`` round values: (where, what it says)."""
        values = _log_ticks(self.low, self.high, count) if self.logarithmic else []
        if len(values) < 2:
            values = _even_ticks(self.low, self.high, count)
        step = min((b - a for a, b in pairwise(values)), default=0.0)
        return [(round(self.at(v), 1), _tick_label(v, step)) for v in values]


def _even_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * m for m in (1, 2, 2.5, 5, 10) if scale * m >= rough * 0.8)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        values = [d * 10.0**e for e in range(first, last + 1) for d in digits]
        values = [v for v in values if low * 0.999 <= v <= high * 1.001]
        if len(values) <= count + 2:
            return values
    return values[:: -(-len(values) // count)]


def _tick_label(value: float, step: float) -> str:
    if abs(value) <= step * 1e-6:
        return "0"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size <= abs(value) < 1000 * size:
            return _minus(f"{value / size:.4g}{letter}")
    if not 1e-3 <= abs(value) < 1e6:
        return _scientific(value, 3)
    # one digit more than the step has, because a step may be 2.5
    return _fixed(value, 1 - math.floor(math.log10(step)) if step else 6)


def number(value: float | None) -> str:
    """``value`` with four digits, for people."""
    if value is None:
        return "–"
    if value != 0 and not 1e-5 <= abs(value) < 1e7:
        return _scientific(value, 4)
    return _fixed(value, 3 - math.floor(math.log10(abs(value))) if value else 0)


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:,.{max(0, decimals)}f}"
    return _minus(text.rstrip("0").rstrip(".") if "." in text else text)


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return _minus(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Moving median over a share of them if there are many; gaps stay gaps.

    A median, because a single spike would stand in a moving mean as a broad block.
    """
    reach = len(values) // _SHARE // 2
    if len(values) < _MANY:
        return list(values)
    window: list[float] = []
    result: list[float | None] = []
    for i in range(-reach, len(values)):
        if i + reach < len(values) and (entering := values[i + reach]) is not None:
            insort(window, entering)
        if i > reach and (leaving := values[i - reach - 1]) is not None:
            window.pop(bisect_left(window, leaving))
        if i >= 0:
            result.append(None if values[i] is None else _middle(window))
    return result


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True)
class DrawnLine:
    """One line of a chart, for the template.

    Attributes:
        path: the line; ``pale`` is what lies behind a smoothed one: all that was logged.
        marks: (x, y) of single points.
        summary: first, lowest, highest and last value with their steps, for the table.
    """

    name: str
    hue: int
    dash: int
    path: str
    pale: str
    marks: list[tuple[float, float]]
    last: str
    summary: list[str]


@dataclass(frozen=True)
class Chart:
    """One chart, for the template; ``data`` is what a script reads the values off from."""

    family: Family
    subject: str
    key: str
    lines: list[DrawnLine]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    notes: list[str]
    label: str
    data: dict = field(repr=False)


def draw(
    key: str, family: Family, lines: Sequence[Line], last_step: float, subject: str = ""
) -> Chart | None:
    """A chart of ``lines`` over the steps from 0 to ``last_step``; None if there is no value.

    ``subject``: the one quantity of the family that it is about, if it is about one.
    """
    lines = [line for line in lines if any(p.counted for p in line.points)]
    if not lines:
        return None
    strong = [smoothed([p.mean for p in line.points]) for line in lines]
    y, clipped = _vertical(family, lines, strong)
    x = Axis(0, max(last_step, 1), LEFT, RIGHT)
    notes = [family.note] if family.note else []
    notes += ["logarithmic"] if y.logarithmic else []
    notes += [f"values up to {number(clipped)} lie beyond the frame"] if clipped else []
    drawn = [_drawn(line, s, x, y) for line, s in zip(lines, strong, strict=True)]
    label = (
        f"{family.title} {subject}".strip()
        + ": "
        + "; ".join(f"{line.name} from {line.summary[0]} to {line.last}" for line in drawn)
    )
    data = [
        {"x": [round(p.step) for p in line.points], "y": [_short(v) for v in s]}
        for line, s in zip(lines, strong, strict=True)
    ]
    scale = [y.low, y.high, int(y.logarithmic)]
    hues = [line.hue for line in drawn]
    read_off = {"x": [x.low, x.high], "y": scale, "lines": data, "hues": hues}
    return Chart(family, subject, key, drawn, x.ticks(4), y.ticks(), notes, label, read_off)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _vertical(
    family: Family, lines: Sequence[Line], strong: Sequence[Sequence[float | None]]
) -> tuple[Axis, float | None]:
    """The axis, and the greatest value if it is left out: a few spikes would flatten the rest."""
    points = [p for line in lines for p in line.points if p.counted]
    lows, highs = sorted(p.low for p in points), sorted(p.high for p in points)
    curves = [value for values in strong for value in values if value is not None]
    low, top, few = lows[0], highs[-1], len(points) // 20
    bulk_low, bulk_high = lows[few], highs[-1 - few]
    if family.logarithmic and low > 0 and bulk_high > _SPAN * bulk_low:
        return Axis(low, max(top, low * 1.01), BOTTOM, TOP, logarithmic=True), None
    clipped = None
    room = bulk_high + 3 * (bulk_high - bulk_low)
    if len(points) >= _MANY and top > max(room, max(curves)):
        top, clipped = max(max(curves), bulk_high + (bulk_high - bulk_low)), top
    # From 0 where that costs little: a height then is a size.
    if low >= 0 and (family.zero or low <= 0.4 * top):
        low = 0.0
    room = 0.05 * (top - low) or abs(top) * 0.1 or 1.0
    return Axis(low - room if low else 0.0, top + room, BOTTOM, TOP), clipped


def _drawn(line: Line, strong: Sequence[float | None], x: Axis, y: Axis) -> DrawnLine:
    means = [p.mean for p in line.points]
    across = [x.at(p.step) for p in line.points]
    finite = [(p, m) for p, m in zip(line.points, means, strict=True) if m is not None]
    lowest, highest = min(finite, key=lambda f: f[0].low), max(finite, key=lambda f: f[0].high)
    told = [(finite[0][0], finite[0][1]), (lowest[0], lowest[0].low), (highest[0], highest[0].high)]
    summary = [_at(p, v) for p, v in (*told, finite[-1])]
    marks = []
    if len(finite) <= _FEW:
        marks = [(round(x.at(p.step), 1), round(y.at(m), 1)) for p, m in finite]
    pale = _envelope(line.points, across, y) if len(means) >= _MANY else ""
    path, last = _path(across, strong, y), number(finite[-1][1])
    return DrawnLine(line.name, line.hue % 8, line.dash % 4, path, pale, marks, last, summary)


def _at(point: Point, value: float) -> str:
    near = "at" if point.rows == 1 else "near"
    return f"{number(value)} {near} step {point.step:,.0f}"


def _path(across: Sequence[float], values: Sequence[float | None], y: Axis) -> str:
    words, lifted = [], True
    for left, value in zip(across, values, strict=True):
        if value is not None:
            words.append(f"{'M' if lifted else 'L'}{left:.1f} {y.at(value):.1f}")
        lifted = value is None
    return "".join(words)


def _envelope(points: Sequence[Point], across: Sequence[float], y: Axis) -> str:
    """From the greatest value of each point to the smallest: all that was logged lies inside."""
    if all(p.low == p.high for p in points if p.counted):
        return _path(across, [p.mean for p in points], y)
    words = []
    for left, p in zip(across, points, strict=True):
        if p.counted:
            words.append(f"M{left:.1f} {y.at(p.high):.1f}V{y.at(p.low):.1f}")
    return "".join(words)
