"""What is printed last: the tables of all parts, how their cases ended, and what to do next."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path

from bench.gpu_suite.cases import DONE, LEFT, PARTS, ROOT, Plan, part_of
from bench.gpu_suite.record import Record


def summary(records: Sequence[Record], plan: Plan) -> Iterator[str]:
    """Lines for people."""
    for record in records:
        yield ""
        yield f"== {record.part}: {_counted(record)}"
        try:
            yield from part_of(PARTS[record.part]).lines(record.results)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            yield f"no table: what is recorded is of another form ({problem!r})"
        yield from _unfinished(record)
    if records:
        yield ""
        yield from _next(records, plan)


def _counted(record: Record) -> str:
    states = Counter(case["state"] for case in record.cases.values())
    return ", ".join(f"{count} {state}" for state, count in states.most_common()) or "no cases"


def _unfinished(record: Record) -> Iterator[str]:
    for name, case in record.cases.items():
        if case["state"] not in (DONE, LEFT):
            reason = (case["error"].splitlines() or ["see its failures"])[0]
            yield f"{case['state']}: {name}: {reason[:160]}"
    left = [name for name, case in record.cases.items() if case["state"] == LEFT]
    if left:
        yield f"left out: {', '.join(left)}"


def _next(records: Sequence[Record], plan: Plan) -> Iterator[str]:
    if any(case["state"] == LEFT for record in records for case in record.cases.values()):
        yield "the same command again goes on with what was left out"
    if plan.rehearse:
        yield f"a rehearsal: nothing in {plan.out} is a figure"
        return
    gpu = str(records[0].found["machine"].get("gpu"))
    folder = f"bench/results/{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}"
    words = [f"mkdir -p {folder}", *_copies(plan.out, folder), "python -m bench.report"]
    yield f"to accept: {' && '.join(words)}"


def _copies(out: Path, folder: str) -> Iterator[str]:
    """Commands that copy the results of ``out``; earlier probes, which are not asked again, stay.

    Runs of the suite have other probes each.
    """
    found = sorted(path for path in out.iterdir() if path.suffix in (".json", ".png"))
    others = [path for path in found if path.name != "probes.json"]
    if others:
        yield shlex.join(["cp", *map(str, others), f"{folder}/"])
    if len(others) < len(found):
        names = chain(["probes.json"], (f"probes_{number}.json" for number in count(2)))
        free = next(name for name in names if not (ROOT / folder / name).exists())
        yield shlex.join(["cp", f"{out}/probes.json", f"{folder}/{free}"])
