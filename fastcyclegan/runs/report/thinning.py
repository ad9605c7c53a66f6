"""Curves and pictures of any number, thinned to a fixed one as they come."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 1000


@dataclass(slots=True)
class Point:
    """Some neighbouring values of a curve as one.

    Attributes:
        rows: how many values were logged, ``counted`` of them finite.
        steps, total: sums of the steps of all and of the values of the finite ones.
        low, high: the smallest and the greatest finite value.
    """

    rows: int
    counted: int
    steps: int
    total: float
    low: float
    high: float

    @property
    def step(self) -> float:
        """The mean of the steps."""
        return self.steps / self.rows

    @property
    def mean(self) -> float | None:
        """Of the finite values; None if there is none."""
        return self.total / self.counted if self.counted else None

    def with_(self, other: "Point") -> "Point":
        """Both as one."""
        return Point(
            self.rows + other.rows,
            self.counted + other.counted,
            self.steps + other.steps,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
        )


class Curve:
    """At most ``limit`` points of a curve that may be of any length.

    Whenever there are as many, neighbours become one: what a value costs does not depend on how
    many came before, and what is kept depends on the values alone, not on when it is looked at.
    """

    def __init__(self, limit: int = MAX_POINTS) -> None:
        """``limit``: an even number."""
        self._limit = limit
        self._whole: list[Point] = []
        self._begun: Point | None = None
        self._rows = 1  # of a whole point
        self.last: float | None = None

    def add(self, step: int, value: float | None) -> None:
        """Append one value; None: not finite."""
        if value is None:
            point = Point(1, 0, step, 0.0, float("inf"), float("-inf"))
        else:
            point = Point(1, 1, step, value, value, value)
            self.last = value
        point = self._begun.with_(point) if self._begun else point
        self._begun = point
        if point.rows < self._rows:
            return
        self._whole.append(point)
        self._begun = None
        if len(self._whole) == self._limit:
            pairs = zip(self._whole[::2], self._whole[1::2], strict=True)
            self._whole = [a.with_(b) for a, b in pairs]
            self._rows *= 2

    @property
    def points(self) -> list[Point]:
        """In the order of their steps, at most ``limit``."""
        return [*self._whole, self._begun] if self._begun else list(self._whole)


def spread(items: Sequence, limit: int) -> list:
    """At most ``limit`` of ``items``, evenly spaced, with the first and the last.

    Every second, fourth, eighth ... item and the last one: when more come, what is kept was kept
    before, but for the new last one.
    """
    stride = 1
    while len(kept := list(items[::stride])) + 1 > limit and len(items) > limit:
        stride *= 2
    return kept if not items or (len(items) - 1) % stride == 0 else [*kept, items[-1]]
