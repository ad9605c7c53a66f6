"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from fastcyclegan.files import printable


class Progress:
    """Shows how far a run is, as a context manager around the training loop.

    On a terminal one bar that is redrawn in place; elsewhere (a file, a pipe) one line per tick.
    """

    def __init__(
        self, total_steps: int, start_step: int, console: Console, unit: str = "step"
    ) -> None:
        """From ``start_step`` to ``total_steps`` of ``unit``, written to ``console``."""
        self.total_steps, self.unit = total_steps, unit
        self._console = console
        self._marks = deque([(start_step, time.monotonic())], maxlen=10)
        self._bar = _Bar(console) if console.is_terminal else None
        if self._bar:
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, speed="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def tick(self, step: int, losses: Mapping[str, float], img_per_s: float) -> None:
        """Show that ``step`` steps are done, with the losses and the speed in img/s, or nan."""
        self._marks.append((step, time.monotonic()))
        values = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        speed = f"{img_per_s:.1f}" if math.isfinite(img_per_s) else "-"
        speed = f"{speed} img/s  ETA {_duration(self._remaining_seconds())}"
        if self._bar:
            self._bar.losses = values
            self._bar.update(self._task, completed=step, speed=speed)
        else:
            self._print(
                "  ".join(filter(None, (f"{self.unit} {step}/{self.total_steps}", values, speed)))
            )

    def say(self, text: str) -> None:
        """Print ``text`` as one line of its own, above the bar if there is one."""
        self._print(printable(text))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _remaining_seconds(self) -> float:
        # Over the last ticks only, so that compiling at the start is soon forgotten.
        (first_step, first_time), (step, now) = self._marks[0], self._marks[-1]
        if step <= first_step:
            return math.inf
        return max(0, self.total_steps - step) * (now - first_time) / (step - first_step)


class _Bar(RichProgress):
    """The bar with the speed, and the losses below it, where a narrow terminal can wrap them."""

    def __init__(self, console: Console) -> None:
        self.losses = ""
        speed = TextColumn("{task.fields[speed]}", markup=False)
        super().__init__(BarColumn(bar_width=20), MofNCompleteColumn(), speed, console=console)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.losses)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
