"""The tracker of a run: told what goes into the run folder, and switched off when it fails."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fastcyclegan.files import printable
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.trackers import Tracker, find_tracker

# Rows of the metrics that are numbers, and what in them is not measured.
_SHOWN, _LABELS = ("train", "eval"), ("schema", "step")


class Tracking:
    """Stands between a training and its tracker: nothing that the tracker does stops the training.

    Args:
        name: of the tracker in ``TRACKERS``, or None for none.
        folder: of the run.
        say: is told, once, that the tracker has failed.
    """

    def __init__(self, name: str | None, folder: RunFolder, say: Callable[[str], None]) -> None:
        self._name, self._folder, self._say = name, folder, say
        self._tracker: Tracker | None = None
        self._begun = name is None

    def _tell(self, act: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as problem:
            self._switch_off(problem)

    def _switch_off(self, problem: Exception) -> None:
        tracker, self._tracker = self._tracker, None
        reason = printable(str(problem) or type(problem).__name__)
        self._say(f"warning: --track {self._name} has failed and is switched off: {reason}")
        if tracker:
            with suppress(Exception):  # what was to be said has been said
                tracker.close()

    def rewind(self, step: int, told: int) -> None:
        """The run goes on after ``step``, with the rows that metrics.jsonl has now.

        Args:
            step: optimiser steps made, 0 for a new run.
            told: up to this step nothing has changed, -1 for a new run. A tracker that is new to
                the run is told everything.
        """
        if not self._begun and self._begin():
            told = -1
        self._tell(lambda tracker: self._again(tracker, step, told))

    def _begin(self) -> bool:
        """Make the tracker; whether the run has not had it before."""
        self._begun, place = True, self._folder.tracker(self._name)
        is_new = not place.is_dir() or not any(place.iterdir())
        try:
            self._tracker = find_tracker(self._name)(place)
        except Exception as problem:
            self._switch_off(problem)
        return is_new

    def _again(self, tracker: Tracker, step: int, told: int) -> None:
        tracker.rewind(told)
        for row in read_metrics(self._folder.metrics) if self._folder.metrics.exists() else ():
            if row["step"] > told:
                _show(tracker, row)
        for shown, path in self._folder.all_previews():
            if told < shown <= step:
                tracker.picture(shown, path)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of a row of the metrics, under kind/name."""
        self._tell(lambda tracker: _show(tracker, row))

    def preview(self, step: int) -> None:
        """Show the preview picture of ``step``."""
        self._tell(lambda tracker: tracker.picture(step, self._folder.preview(step)))

    def close(self) -> None:
        """The end of the training."""
        self._tell(lambda tracker: tracker.close())
        self._tracker = None


def _show(tracker: Tracker, row: Mapping[str, Any]) -> None:
    kind = row.get("kind")
    numbers = {
        f"{kind}/{name}": float(x)
        for name, x in row.items()
        if name not in _LABELS and isinstance(x, int | float)
    }
    if kind in _SHOWN and numbers:
        tracker.scalars(row["step"], numbers)
