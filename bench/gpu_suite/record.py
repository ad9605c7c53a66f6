"""The results of one part in one JSON file, which a later call goes on with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu_suite.cases import DONE, LEFT, Plan, Result
from bench.gpu_suite.worker import Outcome
from bench.recorded import SUITE_SCHEMA
from fastcyclegan.errors import UserError
from fastcyclegan.files import write_atomic

# Figures of two machines that differ in these have no place in one table.
_SAME = ("gpu", "torch", "triton", "cuda")


class Record:
    """What is known of the cases of a part.

    Args:
        part: its name.
        plan: where it is written, and whether it is a rehearsal.
        machine: on which cases are run now.

    Raises:
        UserError: what is there already is of another kind, or of another machine.
    """

    def __init__(self, part: str, plan: Plan, machine: dict[str, Any]) -> None:
        self.part, self.path = part, plan.out / f"{part}.json"
        self.found: dict[str, Any] = {"schema": SUITE_SCHEMA, "part": part}
        self.found |= {"rehearsal": plan.rehearse, "machine": machine, "runs": [], "cases": {}}
        if self.path.exists():
            before = _read(self.path)
            _check(self.path, before, self.found)
            self.found = before | {"machine": _joined(before["machine"], machine)}
        self.found["runs"].append(machine)
        self._names: list[str] = []

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """By name: state, seconds, result, error, and the number of the run that it is of."""
        return self.found["cases"]

    @property
    def results(self) -> dict[str, Result]:
        """Of all cases that returned one, by name."""
        return {name: case["result"] for name, case in self.cases.items() if case.get("result")}

    def state(self, name: str) -> str | None:
        """How a case ended, None if it was never begun."""
        return self.cases.get(name, {}).get("state")

    def put(self, name: str, outcome: Outcome) -> None:
        """Note how a case ended. What an earlier call found stays where it was left out now."""
        if outcome.state != LEFT or self.state(name) in (None, LEFT):
            self.cases[name] = asdict(outcome) | {"run": len(self.found["runs"]) - 1}
            if self._names:
                self.keep(self._names)
        write_atomic(self.path, (json.dumps(self.found, indent=1) + "\n").encode())

    def keep(self, names: list[str]) -> None:
        """Forget what is not a case any more and was never done; the rest is in this order."""
        self._names = names
        known = {name: self.cases[name] for name in names if name in self.cases}
        done = {n: c for n, c in self.cases.items() if n not in known and c["state"] == DONE}
        self.found["cases"] = known | done


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != SUITE_SCHEMA:
        raise UserError(f"--out: {path} is not of this suite; give another folder")
    return found


def _check(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before["rehearsal"] != now["rehearsal"]:
        kind = "a rehearsal" if before["rehearsal"] else "real figures"
        raise UserError(f"--out: {path} holds {kind}; give another folder")
    for name in _SAME:
        old, new = before["machine"].get(name), now["machine"].get(name)
        if old != new:
            raise UserError(f"--out: {path} is of {name} {old}, not {new}; give another folder")


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both in one: where they differ, as for a commit or a driver, both values, as a text."""

    def both(name: str) -> Any:
        first, second = old.get(name), new.get(name)
        if first is None or second is None or str(second) in str(first).split(", "):
            return first if second is None or first is not None else second
        return f"{first}, {second}"

    return {name: both(name) for name in (*old, *(n for n in new if n not in old))}
