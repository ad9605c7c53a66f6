"""What is printed last: the tables of all parts, how their cases ended, and what to do next."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from bench.gpu_suite.cases import DONE, LEFT, PARTS, Plan, part_of
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
    yield f"to accept: cp {plan.out}/*.json {plan.out}/*.png {folder}/ && python -m bench.report"
