"""Standard output as a training needs it: neither a full disk nor a gone reader ends one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console

from fastcyclegan.files import discard


class Output:
    """Writes to ``stream`` what that takes, and drops what it refuses, as on a full disk.

    Attributes:
        on_gone: called where the reader of a pipe is gone, and all is dropped from then on; without
            it BrokenPipeError is raised, as by print.
    """

    on_gone: Callable[[], None] | None = None

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of the stream."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As of the stream."""
        self._try(self._stream.flush)

    def end(self) -> None:
        """Give up what could not be written until now: no later flush fails, as Python's own."""
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def _try(self, do: Callable[..., object], *given: str) -> None:
        try:
            do(*given)
        except BrokenPipeError:
            if self.on_gone is None:
                raise
            discard(self._stream)
            self.on_gone()
        except OSError:
            pass  # lines are lost, and come again where there is room again


class Terminal(Console):
    """rich's console on ``output``."""

    def __init__(self, output: Output, quiet: bool) -> None:
        self.output = output
        super().__init__(file=output, highlight=False, markup=False, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, where rich would exit."""
        raise BrokenPipeError from None


@contextmanager
def terminal(stream: TextIO, quiet: bool = False) -> Iterator[Terminal]:
    """A console on ``stream``; what that has not taken by the end is given up."""
    output = Output(stream)
    try:
        yield Terminal(output, quiet)
    finally:
        output.end()
