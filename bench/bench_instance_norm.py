"""Instance norm with its activation, residual and padding: kernels against PyTorch.

    pytest bench/bench_instance_norm.py --benchmark-only
    python -m bench.bench_instance_norm OUT.json [--quick] [--providers NAME ...] [--commit HASH]

The second writes one row per case, provider and mode: us of graph replays (median, 10th and 90th
percentile), GB/s of the bytes that the fused kernels must move, that as a fraction of the copy
bandwidth measured in the same run, and the largest relative error against fp64.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.norm_cases import (
    CASES,
    LARGE,
    MODES,
    PROVIDERS,
    RESIDUAL,
    TRUNK,
    WIDE,
    Case,
    Run,
    copy_gb_per_s,
    counted_bytes,
)
from bench.probes.timing import capture, free_memory

CUDA = torch.device("cuda")


def rows_of(case: Case, provider: str, copy: float) -> list[dict[str, Any]]:
    """The rows of all modes."""
    run = Run(case, provider)
    error = run.error()
    rows = []
    for mode in MODES:
        us = run.us(mode)
        gb_per_s = counted_bytes(case, mode) / us["median"] / 1e3
        rows.append(
            {"case": str(case), "provider": provider, "mode": mode, "us": us}
            | {"counted_bytes": counted_bytes(case, mode), "GB_per_s": round(gb_per_s, 1)}
            | {"of_copy": round(gb_per_s / copy, 3), "error": error}
        )
    return rows


def record(pairs: list[tuple[Case, str]], out: Path, commit: str | None) -> dict[str, Any]:
    """Machine, copy bandwidth and the rows of each (case, provider); written after every one."""
    from bench.probes.__main__ import machine

    copy = copy_gb_per_s()
    result = {"machine": machine(CUDA, commit), "copy_GB_per_s": copy, "rows": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    for case, provider in pairs:
        try:
            result["rows"] += rows_of(case, provider, copy)
        except RuntimeError as error:
            failed = {"case": str(case), "provider": provider, "failed": str(error)[:300]}
            result["rows"].append(failed)
        free_memory(CUDA)
        out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """One line per case and mode: us of every provider, and what the kernels reach."""
    rows = [row for row in result["rows"] if "us" in row]
    us = {(row["case"], row["mode"], row["provider"]): row["us"]["median"] for row in rows}
    lines = [f"copy {result['copy_GB_per_s']} GB/s; us of {', '.join(PROVIDERS)}"]
    for row in rows:
        if row["provider"] == "triton":
            key = row["case"], row["mode"]
            times = " ".join(f"{us.get((*key, p), float('nan')):9.2f}" for p in PROVIDERS)
            reached = f"{row['GB_per_s']:7.0f} GB/s {row['of_copy']:6.1%}"
            lines.append(f"{row['case']:36} {row['mode']:8} {times} {reached} {row['error']}")
    lines += [str(row) for row in result["rows"] if "failed" in row]
    return "\n".join(lines)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def bench_instance_norm(benchmark, case: Case, provider: str, mode: str) -> None:
    """Wall clock of one graph replay; events around many replays give ``extra_info["us"]``."""
    run = Run(case, provider)
    us = run.us(mode)["median"]
    gb_per_s = counted_bytes(case, mode) / us / 1e3
    benchmark.extra_info |= {"us": us, "GB_per_s": gb_per_s} | run.error()
    benchmark.extra_info["of_copy"] = gb_per_s / copy_gb_per_s()
    replay = capture(run.body(mode), CUDA)

    def synchronous() -> None:
        replay()
        torch.cuda.synchronize()

    benchmark.pedantic(synchronous, rounds=20, warmup_rounds=2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_instance_norm")
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few cases only")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--commit", help="recorded where the tree has no git history")
    args = parser.parse_args()
    cases = [*TRUNK, RESIDUAL[1], WIDE[1], LARGE[0]] if args.quick else CASES
    pairs = [(case, provider) for case in cases for provider in args.providers]
    print(table(record(pairs, args.out, args.commit)))


if __name__ == "__main__":
    main()
