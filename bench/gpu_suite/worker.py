"""A process for cases: what crashes, or spoils its GPU context, spoils this process alone."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from bench.gpu_suite.cases import CRASHED, DONE, FAILED, LATE, Case, Plan, Result, part_of

TAIL = 3000
# Long enough to save what it has: a training that is told to stop writes its weights first.
GRACE = 5.0


@dataclass
class Outcome:
    """How a case ended: its state, seconds, what it returned, and why it did not."""

    state: str
    seconds: float = 0.0
    result: Result = field(default_factory=dict)
    error: str = ""


class Worker:
    """A fresh process for cases of the part in ``module``."""

    def __init__(self, module: str, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._mine, theirs = context.Pipe()
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115  closed by end
        arguments = theirs, module, plan, self._log.name
        self._process = context.Process(target=serve, args=arguments)
        self._process.start()
        theirs.close()

    def run(self, case: Case, limit: float) -> Outcome:
        """What becomes of ``case`` in ``limit`` seconds; unless it is done, the process ends."""
        start = time.monotonic()
        try:
            self._mine.send(case.name)
            answered = self._mine.poll(limit)
            outcome = self._mine.recv() if answered else Outcome(LATE, error=self._tail())
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            outcome = Outcome(CRASHED, error=f"{how}\n{self._tail()}")
        outcome.seconds = round(time.monotonic() - start, 1)
        if outcome.state != DONE:
            self.end()
        return outcome

    def end(self) -> None:
        """End the process and all that it has started."""
        for signum, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            try:
                os.killpg(self._process.pid, signum)
            except (ProcessLookupError, PermissionError):
                self._process.kill()  # it has not begun, or has ended
            self._process.join(patience)
        self._mine.close()
        self._log.close()

    def _tail(self) -> str:
        with open(self._log.name, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL))
            return log.read().decode(errors="replace").strip()


def serve(link: Connection, module: str, plan: Plan, log: str) -> None:
    """Run the cases whose names come through ``link``, until one fails; ``log`` is what they print.

    In a process group of its own, so that all that a case has started can be ended with it.
    """
    os.setsid()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    faulthandler.enable()
    cases = {case.name: case for case in part_of(module).cases(plan)}
    outcome: Any = None
    while outcome is None or outcome.state == DONE:
        try:
            case = cases[link.recv()]
        except EOFError:
            return
        outcome = _outcome(case)
        link.send(outcome)
    sys.exit(0)


def _end_with(parent: int) -> None:
    """End this process, and all that it has started, when ``parent`` has ended by a signal."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _outcome(case: Case) -> Outcome:
    try:
        result = case.run()
    except Exception as problem:
        frames = "".join(traceback.format_tb(problem.__traceback__, limit=-4))
        said = f"{type(problem).__name__}: {problem}".strip()
        return Outcome(FAILED, error=f"{said[:TAIL]}\n{frames}")
    return Outcome(FAILED if result.get("failures") else DONE, result=result)
