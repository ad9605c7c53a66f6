"""Stopping at a step boundary when the user or the system asks for it."""

import signal
import time
from types import FrameType
from typing import Self

# Seconds. A terminal and what runs in it, timeout or torchrun, both pass on what was meant once.
ECHO = 1.0


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets ``signum``; a second one ends the process.

    That is the system's own end of a process, which a shell sees as 130 or 143: it does not wait
    for a compiler, a step or a disk. What comes within ``ECHO`` of the first is part of it.
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

    def reader_gone(self) -> None:
        """Stop as after SIGPIPE, unless a signal was or will be there that says otherwise."""
        self.signum = self.signum or signal.SIGPIPE

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._answer(signal.SIG_IGN)
        time.sleep(ECHO)  # only here, in the main thread, may Python change an answer
        self._answer(signal.SIG_DFL)

    def _answer(self, handler: signal.Handlers) -> None:
        for signum in self._before:
            signal.signal(signum, handler)
