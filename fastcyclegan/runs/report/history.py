"""What metrics.jsonl says, thinned as it is read: each byte of it is read once."""

import math
import re
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

from fastcyclegan.files import printable
from fastcyclegan.runs.metrics import parse_row
from fastcyclegan.runs.report.thinning import MAX_POINTS, Curve

MAX_CURVES = 40
MAX_EVENTS = 50
# Beyond this a number is no measurement, and its square could not be drawn.
_GREATEST = 1e100
_LAST_STEP = 10**12
_LONGEST_LINE = 1 << 16
_LONGEST_TEXT = 300
_REMEMBERED = 256
_NO_CURVE = frozenset({"schema", "kind", "step", "images", "epoch"})
_NAME = re.compile(r"[^\s\x00-\x1f]{1,60}")


class History:
    """Curves, events and the last row of a metrics file that may still grow.

    Attributes:
        train, evals: a curve for each number of the rows of that kind, by name.
        events: the last ones, (step, what happened) each; ``event_count`` is of all.
        last: step, images and epoch of the last train row.
        last_step: the greatest step of a train or eval row.
        rows, bytes: what was read, all in all.
        crowded: whether there were more than MAX_CURVES names.
    """

    def __init__(self, path: Path, points: int = MAX_POINTS) -> None:
        """``path`` need not exist yet; ``points``: of each curve at most, an even number."""
        self.path, self._points = path, points
        self.rows = self.bytes = 0
        self._forget()

    def _forget(self) -> None:
        self.train: dict[str, Curve] = {}
        self.evals: dict[str, Curve] = {}
        self.events: deque[tuple[int, str]] = deque(maxlen=MAX_EVENTS)
        self.event_count = 0
        self.last: dict[str, Any] = {}
        self.last_step = 0
        self.crowded = False
        self._offset, self._tail = 0, b""

    def refresh(self) -> None:
        """Read what was appended since the last time. Raises OSError.

        A file that is no longer what was read (the run went back) is read from its beginning.
        """
        if not self.path.exists():
            return self._forget()
        with open(self.path, "rb") as file:
            if not self._goes_on(file):
                self._forget()
                file.seek(0)
            while line := file.readline(_LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    break  # still being written
                self._offset += len(line)
                self._tail = line[-_REMEMBERED:]
                self.bytes += len(line)
                self._take(parse_row(line))

    def _goes_on(self, file: BinaryIO) -> bool:
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _take(self, row: dict[str, Any] | None) -> None:
        if row is None or not 0 <= row["step"] <= _LAST_STEP:
            return
        self.rows += 1
        if row.get("kind") == "event":
            self.event_count += 1
            self.events.append((row["step"], _told(row)))
        elif row.get("kind") in ("train", "eval"):
            if row["kind"] == "train":
                self.last = {key: row.get(key) for key in ("step", "images", "epoch")}
            self.last_step = max(self.last_step, row["step"])
            curves = self.train if row["kind"] == "train" else self.evals
            for name, value in row.items():
                self._add(curves, name, row["step"], value)

    def _add(self, curves: dict[str, Curve], name: str, step: int, value: Any) -> None:
        number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if name in _NO_CURVE or not number or not _NAME.fullmatch(name):
            return
        if name not in curves:
            if len(self.train) + len(self.evals) >= MAX_CURVES:
                self.crowded = True
                return
            curves[name] = Curve(self._points)
        curves[name].add(step, finite(value))


def finite(value: Any) -> float | None:
    """``value`` as a float, None if it is none that can be drawn."""
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and abs(value) <= _GREATEST else None


def _told(row: dict[str, Any]) -> str:
    name = row.get("event", "event")
    details = [f"{k} {v}" for k, v in row.items() if k not in ("schema", "kind", "step", "event")]
    return shortened(f"{name}: {', '.join(details)}" if details else name)


def shortened(value: Any, limit: int = _LONGEST_TEXT) -> str:
    """``value`` as text on one line, at most ``limit`` characters of it."""
    text = printable(str(value)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"
