"""Part ops: the bench of each op, a process for each way to compute it; bytes, where ncu is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from bench.gpu_suite import counters
from bench.gpu_suite.cases import ROOT, Case, Plan, Result
from bench.gpu_suite.processes import run_pytest
from bench.op_bench import OpBench
from bench.recorded import from_benchmarks

# Torch's own ways to run Adam are no op of ours, but belong beside them.
OTHERS = ("bench_optimiser",)
FIRST = "bench_instance_norm"
REHEARSED = ("bench_reflection_pad", "ref")


def cases(plan: Plan) -> Sequence[Case]:
    """A case for each op and provider; what the norm's kernels are compared with comes first."""
    found = {path.stem: op for path in sorted(ROOT.glob("bench/bench_*.py")) if (op := _op(path))}
    if plan.rehearse:
        found = {k: op for k, op in found.items() if k in REHEARSED}
    providers = dict.fromkeys(p for op in found.values() for p in op.providers)
    pairs = [(stem, p) for p in providers for stem, op in found.items() if p in op.providers]
    if plan.rehearse:
        pairs = [pair for pair in pairs if pair == REHEARSED]
    else:
        pairs += [(stem, "") for stem in OTHERS]
    seconds = 10 if plan.rehearse else 30
    counted = counters.COUNTED if counters.profiler() and not plan.rehearse else ()
    benches = [
        Case(
            f"{stem} {provider}".strip(),
            partial(bench, stem, provider),
            seconds,
            limit=240,
            turn=_turn(stem, provider),
        )
        for stem, provider in pairs
    ]
    return benches + [Case(f"ncu {case}", partial(counters.count, case), 20) for case in counted]


def _turn(stem: str, provider: str) -> int:
    if stem == FIRST and provider != "ref":
        return 0
    return 1 if provider == "triton" else 2


def _op(path: Path) -> OpBench | None:
    """The op that a bench is of, if it is of one."""
    is_op = "OpBench(" in path.read_text(encoding="utf-8")
    return import_module(f"bench.{path.stem}").OP if is_op else None


def bench(stem: str, provider: str) -> Result:
    """The rows of one op and provider, as pytest-benchmark writes them, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        words = [f"bench/{stem}.py", "--benchmark-only", f"--benchmark-json={out}"]
        words += ["-m", "not slow", *([f"-k-{provider}-"] if provider else [])]
        result = run_pytest(words)
        if not out.is_file() or not out.stat().st_size:
            return result
        found = json.loads(out.read_text(encoding="utf-8"))
    machine = found["machine_info"]["fastcyclegan"]
    keep = ("name", "param", "group", "extra_info")
    figures = ("median", "q1", "q3", "rounds")
    rows = [
        {k: row[k] for k in keep} | {"stats": {k: row["stats"][k] for k in figures}}
        for row in found["benchmarks"]
    ]
    return result | {"machine": machine, "benchmarks": rows}


def lines(results: Mapping[str, Result]) -> list[str]:
    """The table of bench.report, and what was not recorded."""
    from bench.report import op_table

    timed = [op for r in results.values() for op in from_benchmarks(r.get("benchmarks", ()))[1]]
    failed = [f"failed: {f['test']}" for r in results.values() for f in r.get("failures", ())]
    bytes_of = [counters.told(r) for r in results.values() if "counted" in r]
    return (op_table(timed).splitlines() if timed else []) + bytes_of + failed
