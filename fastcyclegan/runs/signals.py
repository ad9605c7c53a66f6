"""Stopping at a step boundary when the user or the system asks for it."""

import signal
from types import FrameType
from typing import Self


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets ``signum``; a second one ends the process.

    That is the system's own end of a process, which a shell sees as 130 or 143: it does not wait
    for a compiler, a step or a disk.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
