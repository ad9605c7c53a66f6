"""metrics.jsonl: one JSON object per line, appended as training goes."""

import json
import math
import os
from pathlib import Path
from typing import Any

from fastcyclegan.files import write_atomic

SCHEMA = 1
KINDS = ("train", "eval", "event")


class MetricsLog:
    """The metrics file of one run, for appending.

    A line that a crash left unfinished at the end is removed before the next one is written.
    """

    def __init__(self, path: Path) -> None:
        """``path`` need not exist; its folder must when something is written."""
        self.path = Path(path)
        self._waiting: list[dict[str, Any]] = []

    def write(self, kind: str, step: int, **values: Any) -> list[dict[str, Any]]:
        """Append a row of ``kind`` train, eval or event, after ``step`` steps; see :meth:`flush`.

        Values are JSON-able, or scalars with ``.item()``; a non-finite number becomes null. Raises
        ValueError for another kind, OSError when the row cannot be written: it waits for the next.
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        row = {"schema": SCHEMA, "kind": kind, "step": int(step)} | _finite(values)
        self._waiting.append(row)
        return self.flush()

    def flush(self) -> list[dict[str, Any]]:
        """Write the rows that wait, all or none, and return them. Raises OSError."""
        if self._waiting:
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._waiting)
            _append(self.path, text.encode())
        written, self._waiting = self._waiting, []
        return written

    def rewind(self, step: int, summed: int = 0) -> int:
        """Drop the rows of later steps than ``step``, for resuming there; return how many.

        ``summed``: how many of the steps up to ``step`` wait to be written in the next train row;
        a train row that already counts some of them is dropped as well.
        """
        last = {"train": step - summed}

        def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [row for row in rows if row["step"] <= last.get(row.get("kind"), step)]

        self._waiting = kept(self._waiting)
        if not self.path.exists():
            return 0
        before = read_metrics(self.path)
        after = kept(before)
        if after != before:
            text = "".join(json.dumps(row) + "\n" for row in after)
            write_atomic(self.path, text.encode())
        return len(before) - len(after)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order. Raises OSError when it cannot be read.

    Lines that are not rows (what a crash left of one) are passed over.
    """
    lines = Path(path).read_bytes().splitlines()
    return [row for line in lines if (row := parse_row(line)) is not None]


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row that ``line`` holds, or None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and type(row.get("step")) is int
    return row if known else None


def _append(path: Path, data: bytes) -> None:
    """Add ``data`` behind the last whole line of ``path``, all or nothing. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        end = size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            end = os.pread(file, size, 0).rfind(b"\n") + 1
            os.ftruncate(file, end)
        try:
            while data:  # once, unless the disk fills up
                data = data[os.write(file, data) :]
        except OSError:
            os.ftruncate(file, end)
            raise
    finally:
        os.close(file)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
