"""metrics.jsonl: one JSON object per line, appended as training goes."""

import json
import math
from pathlib import Path
from typing import Any

from fastcyclegan.files import write_atomic

SCHEMA = 1
KINDS = ("train", "eval", "event")


class MetricsLog:
    """The metrics file of one run, open for appending.

    A line that a crash left unfinished at the end is removed, so that the next one starts clean.
    """

    def __init__(self, path: Path) -> None:
        """``path`` need not exist; its folder must. Raises OSError."""
        self.path = Path(path)
        if self.path.exists():
            text = self.path.read_bytes()
            if text and not text.endswith(b"\n"):
                write_atomic(self.path, text[: text.rfind(b"\n") + 1])

    def write(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        """Append a row of ``kind`` train, eval or event, after ``step`` steps, and return it.

        Values are JSON-able, or scalars with ``.item()``; a non-finite number becomes null. Raises
        ValueError for another kind, OSError when the row cannot be written.
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        row = {"schema": SCHEMA, "kind": kind, "step": int(step)} | _finite(values)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        return row

    def rewind(self, step: int, summed: int = 0) -> int:
        """Drop the rows of later steps than ``step``, for resuming there; return how many.

        ``summed``: how many of the steps up to ``step`` wait to be written in the next train row;
        a train row that already counts some of them is dropped as well.
        """
        if not self.path.exists():
            return 0
        rows = read_metrics(self.path)
        last = {"train": step - summed}
        kept = [row for row in rows if row["step"] <= last.get(row.get("kind"), step)]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomic(self.path, text.encode())
        return len(rows) - len(kept)


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
