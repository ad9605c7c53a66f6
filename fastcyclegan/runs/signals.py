"""Stopping at a step boundary when the user or the system asks for it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from fastcyclegan.data.images import one_line
from fastcyclegan.errors import Stop, UserError

# What a shell adds to the number of a signal.
SIGNAL_EXIT = 128
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

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Around a step, which fails where a signal ends its compiler: Ctrl-C is sent to that too.

        Raises:
            Stop: how much of the step was done nobody knows, and the last checkpoint stands.
        """
        try:
            yield
        except Exception as error:
            if not self.signum or isinstance(error, Stop | UserError):
                raise
            reason = one_line(str(error)) or type(error).__name__
            line = f"stopped within a step, which the same command makes again ({reason})"
            raise Stop(SIGNAL_EXIT + self.signum, line) from None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._answer(signal.SIG_IGN)
        time.sleep(ECHO)  # only here, in the main thread, may Python change an answer
        self._answer(signal.SIG_DFL)

    def _answer(self, handler: signal.Handlers) -> None:
        for signum in self._before:
            signal.signal(signum, handler)
