"""What ``--track`` shows a run in, besides the run's own folder: the names, and the protocol."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

from fastcyclegan.errors import UserError


class Tracker(Protocol):
    """Is told what a run measures and shows, as it goes.

    It is made of one argument, the folder to write to: ``<run>/<name of the tracker>``, which need
    not exist. What any of its functions raises switches it off, and the training goes on.
    """

    def rewind(self, step: int) -> None:
        """Forget what belongs to later steps than ``step``: the run goes on from there.

        The first call of all, also in a new run, where ``step`` is -1.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show finite numbers after ``step`` optimiser steps, by names such as ``train/G_A``."""

    def picture(self, step: int, path: Path) -> None:
        """Show the preview of ``step``, a PNG file."""

    def close(self) -> None:
        """Let go of everything; nothing is called after it."""


MakeTracker = Callable[[Path], Tracker]

# By the name that --track has for it; "module:class" is imported when it is asked for.
TRACKERS: dict[str, MakeTracker | str] = {
    "tensorboard": "fastcyclegan.runs.tensorboard:TensorBoard",
}


def find_tracker(name: str) -> MakeTracker:
    """The tracker that ``name`` stands for.

    Raises:
        UserError: what it needs is not installed, or cannot be imported.
    """
    found = TRACKERS[name]
    if not isinstance(found, str):
        return found
    module, _, cls = found.partition(":")
    try:
        return getattr(import_module(module), cls)
    except ModuleNotFoundError as problem:
        reason = f"needs {(problem.name or str(problem)).partition('.')[0]}"
    except Exception as problem:  # versions that do not go together raise anything
        reason = f"cannot be used ({type(problem).__name__}: {problem})"
    raise UserError(f"--track {name} {reason}: pip install -e '.[track]', or leave it out")
