"""What the suite is made of: parts, whose cases are each run in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
# Their modules, in the order in which they are run where none is chosen.
PARTS = {
    "tests": "bench.gpu_suite.tests_part",
    "ladder": "bench.gpu_suite.ladder_part",
    "ops": "bench.gpu_suite.ops_part",
    "dcgan": "bench.gpu_suite.dcgan_part",
    "train": "bench.gpu_suite.train_part",
    "quality": "bench.gpu_suite.quality_part",
}
# How a case ended. What is done is not done again.
DONE, FAILED, CRASHED, LATE, LEFT = "done", "failed", "crashed", "timed out", "left out"
Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One call of the suite.

    Args:
        out: the folder of results.
        budget: seconds for each part.
        rehearse: tiny sizes on the CPU.
        commit: recorded where the tree has no git history.
    """

    out: Path
    budget: float
    rehearse: bool = False
    commit: str | None = None


@dataclass(frozen=True)
class Case:
    """Something to do, alone.

    Args:
        name: unique in its part.
        run: returns what is recorded; with an entry ``failures`` that is not empty it has failed.
        seconds: that it takes about; it is not begun with less left.
        limit: seconds after which it is ended.
        process: neighbours of one name here share a process, as long as they succeed; "": none do.
        turn: those of the smallest are run first, whatever their place.
        alone: nothing else is run beside it, even in a part with ``LANES``.
    """

    name: str
    run: Callable[[], Result]
    seconds: float
    limit: float = 180.0
    process: str = ""
    turn: int = 0
    alone: bool = False


class Part(Protocol):
    """What the module of a part has, and ``LANES`` if its cases may be run beside each other."""

    def cases(self, plan: Plan) -> Sequence[Case]:
        """All cases in the order of the table; the same in every process."""

    def lines(self, results: Mapping[str, Result]) -> list[str]:
        """The table of what was found, by name of its case."""


def part_of(module: str) -> Part:
    """The part whose module has this name."""
    return import_module(module)
