"""One part from its first case to its last, within its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock

import torch

from bench import report
from bench.gpu_suite.cases import DONE, LATE, LEFT, Case, Plan, part_of
from bench.gpu_suite.record import Record
from bench.gpu_suite.worker import Outcome, Worker
from bench.probes.__main__ import machine
from bench.probes.timing import Budget
from bench.recorded import load
from fastcyclegan.errors import UserError


def run_part(
    name: str, module: str, plan: Plan, only: Sequence[str], say: Callable[[str], None]
) -> Record:
    """Run the cases of a part that are not done, those that failed before last.

    Args:
        module: of the part.
        only: texts of which a case's name must hold one; none: all cases.
        say: is told how each case went, in a line.

    Raises:
        UserError: ``only`` fits nothing; results that are there are of another kind.
    """
    clock = Budget(plan.budget)
    device = torch.device("cpu" if plan.rehearse else "cuda")
    record = Record(name, plan, machine(device, plan.commit))
    part = part_of(module)
    cases = part.cases(plan)
    record.keep([case.name for case in cases])
    chosen = [case for case in cases if not only or any(text in case.name for text in only)]
    if only and not chosen:
        raise UserError(f"--only {' '.join(only)}: no case of {name} has such a name")
    waiting = [case for case in chosen if record.state(case.name) != DONE]
    waiting.sort(key=lambda case: (record.state(case.name) not in (None, LEFT), case.turn))
    say(f"{name}: {len(waiting)} of {len(cases)} cases, {plan.budget:.0f} s")

    def done(case: Case, outcome: Outcome) -> None:
        record.put(case.name, outcome)
        say(f"{clock.used():6.1f} s  {name}: {case.name}: {_told(outcome)}")

    beside = [case for case in waiting if not case.alone]
    try:
        _run([case for case in waiting if case.alone], [_Line(module, plan, clock)], done)
        lanes = min(getattr(part, "LANES", 1), len(beside))
        _run(beside, [_Line(module, plan, clock) for _ in range(lanes)], done)
    finally:
        if waiting:
            draw(record, say)
    return record


def _run(
    cases: Sequence[Case], lines: Sequence[_Line], done: Callable[[Case, Outcome], None]
) -> None:
    """Let ``lines`` take from ``cases`` until there are none; each that has ended is ``done``."""
    left, lock = iter(cases), Lock()

    def work(line: _Line) -> None:
        while not line.ended:
            with lock:
                case = next(left, None)
            if case is None:
                return
            outcome = line.run(case)
            with lock:
                if not line.ended:
                    done(case, outcome)

    with ThreadPoolExecutor(max(1, len(lines))) as pool:
        try:
            for future in as_completed([pool.submit(work, line) for line in lines]):
                future.result()
        finally:
            for line in lines:
                line.end()


class _Line:
    """Cases one after the other, each in a process that it may share.

    Attributes:
        ended: whether :meth:`end` was called.
    """

    def __init__(self, module: str, plan: Plan, clock: Budget) -> None:
        self._module, self._plan, self._clock = module, plan, clock
        self._worker: Worker | None = None
        self._process, self.ended = "", False

    def run(self, case: Case) -> Outcome:
        """What becomes of ``case`` with the time that is left."""
        left = self._clock.left()
        if left < case.seconds:
            reason = f"takes about {case.seconds:.0f} s, {max(0.0, left):.0f} s were left"
            return Outcome(LEFT, error=reason)
        if self._worker is None or not case.process or case.process != self._process:
            self._leave()
            self._worker, self._process = Worker(self._module, self._plan), case.process
        outcome = self._worker.run(case, min(case.limit, left))
        if outcome.state != DONE:
            self._worker = None
        if outcome.state == LATE and left < case.limit:
            outcome = Outcome(LEFT, outcome.seconds, error="not ended when the time was up")
        return outcome

    def end(self) -> None:
        """End the process that there is, and take no more."""
        self.ended = True
        self._leave()

    def _leave(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            worker.end()


def draw(record: Record, say: Callable[[str], None]) -> None:
    """The pictures that bench.report makes of what was recorded, beside it."""
    try:
        report.draw(record.path.parent, [load(record.path, rehearsal=True)])
    except Exception as problem:  # no picture is worth the rest of the suite
        say(f"no picture of {record.part}: {problem}")


def _told(outcome: Outcome) -> str:
    first = (outcome.error.splitlines() or [""])[0]
    reason = f" ({first[:200]})" if first and outcome.state != DONE else ""
    return f"{outcome.state}, {outcome.seconds:.1f} s{reason}"
