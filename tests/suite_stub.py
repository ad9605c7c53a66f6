"""A part of the suite whose cases do what its tests need; each leaves a line that it has begun."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.gpu_suite.cases import Case


def cases(plan):
    do = partial(partial, _begun, plan.out)
    if (plan.out / "pair").exists():
        meet = partial(partial, _meet, plan.out)
        return [
            Case("left", do("left", meet("left", "right")), 0.1, limit=60),
            Case("right", do("right", meet("right", "left")), 0.1, limit=60),
            Case("after", do("after", dict), 0.1, turn=1),
            Case("before", do("before", dict), 0.1, turn=-1),
            Case("alone", do("alone", dict), 0.1, turn=2, alone=True),
        ]
    return [
        Case("quick", do("quick", lambda: {"answer": 42}), 0.1),
        Case("wrong", do("wrong", _raise), 0.1, process="shared"),
        Case("crash", do("crash", lambda: os.abort()), 0.1, process="shared"),
        Case("long", do("long", dict), 1e5),
        Case("late", do("late", partial(_sleep, plan.out)), 0.1, limit=1.0),
        Case("first", do("first", lambda: {"pid": os.getpid()}), 0.1, process="one"),
        Case("second", do("second", lambda: {"pid": os.getpid()}), 0.1, process="one"),
        Case("told", do("told", lambda: {"failures": [{"test": "x", "text": "y"}]}), 0.1),
    ]


def lines(results):
    return [f"{name}: {result}" for name, result in results.items()]


def _begun(out: Path, name: str, run):
    with open(out / "begun", "a") as file:
        file.write(f"{name}\n")
    return run()


def _meet(out: Path, mine: str, other: str):
    """Comes to an end only beside the other."""
    (out / mine).touch()
    while not (out / other).exists():
        time.sleep(0.05)
    return {}


def _raise():
    print("said before it")
    raise ValueError("a value")


def _sleep(out: Path):
    """With a child that must not outlive it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (out / "child").write_text(str(child.pid))
    time.sleep(60)
