"""The report of a run while it trains: written in a thread, seldom, and never in the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.writer import Writer

if TYPE_CHECKING:
    from fastcyclegan.runs.report.page import RunPage

# After the start, then between two writings; and a writing may take this share of the time.
FIRST_SECONDS = 5.0
EVERY_SECONDS = 30.0
SHARE = 0.02


class LiveReport:
    """Keeps report.html of a run up to date; a failure is told once and stops nothing."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """``say`` is given the one warning."""
        self._folder, self._say = folder, say
        self._page: RunPage | None = None
        self._writer = Writer()
        self._next = time.monotonic() + FIRST_SECONDS
        self._took = 0.0
        self._failed = False

    def tick(self, done: int) -> None:
        """After ``done`` steps: begin to write the page if it is time for it."""
        if self._writer.ready:
            self._tell(self._writer.finish())
            self._next = time.monotonic() + max(EVERY_SECONDS, self._took / SHARE)
        if time.monotonic() >= self._next:
            self._next = float("inf")
            self._writer.submit(partial(self._write, done))

    def close(self) -> None:
        """Write the page of the end."""
        self._tell(self._writer.finish())
        self._writer.submit(self._write)
        self._tell(self._writer.finish())

    def _write(self, done: int | None = None) -> None:
        started = time.monotonic()
        from fastcyclegan.runs.report.page import RunPage

        self._folder.require_ours()
        self._page = self._page or RunPage(self._folder)
        self._page.refresh(done)
        self._page.write()
        self._took = time.monotonic() - started

    def _tell(self, problem: BaseException | None) -> None:
        if problem and not self._failed:
            self._failed = True
            reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
            self._say(f"warning: {self._folder.report} could not be written: {reason}")
