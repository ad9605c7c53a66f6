"""Tries block sizes for the norm's kernels; the best ones are written into kernels/norm_config.py.

    python -m bench.tune_instance_norm [OUT.json]

Needs a GPU. Varies the reducing kernels with the applying ones as they are, then the other way
round, and prints us of forward and of backward for each configuration, the fastest first.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

from bench.norm_cases import Case, Run
from bench.op_bench import replayed_us
from fastcyclegan.kernels import instance_norm, instance_norm_bwd
from fastcyclegan.kernels.norm_config import Config, apply_config, reduce_config

CASES = (
    Case((1, 256, 64, 64), pad=1),
    Case((64, 256, 64, 64), pad=1),
    Case((8, 256, 64, 64), pad=1),
    Case((2, 64, 256, 256)),
)
# Loads of 16 bytes in flight per thread, warps, programs.
REDUCE = list(itertools.product((2, 4, 8), (4, 8), (512, 1024)))
APPLY = list(itertools.product((1, 2, 4), (4, 8), (512, 1024, 2048)))


def candidates(kind: str) -> list[Config]:
    """Every combination worth a try, for 16-bit elements and at least 64 channels."""
    found = []
    for depth, warps, programs in REDUCE if kind == "reduce" else APPLY:
        rows = warps * 32 * 8 // 64
        if kind == "reduce":
            found.append(Config(rows, 64, depth, warps, programs, 4, 64))
        else:
            found.append(Config(rows * depth, 64, 1, warps, programs, 1, 2**31 - 1))
    return found


def use(kind: str, config: Config | None) -> None:
    """Make the launchers use ``config``; None restores the table."""
    table = {"reduce": reduce_config, "apply": apply_config}[kind]
    for module in (instance_norm, instance_norm_bwd):
        setattr(module, f"{kind}_config", table if config is None else lambda *_: config)


def measure(kind: str, case: Case) -> list[dict]:
    """us of forward and backward for the table's configuration (None) and every candidate."""
    rows = []
    run = Run(case, "triton")
    for config in [None, *candidates(kind)]:
        use(kind, config)
        us = {mode: replayed_us(run, mode)["median"] for mode in ("fwd", "bwd")}
        rows.append({"case": str(case), "kind": kind, "config": config} | us)
    use(kind, None)
    return rows


def best(rows: list[dict]) -> Config:
    """The configuration with the least product of its times over all cases and modes."""
    scores: dict[Config, float] = {}
    for row in rows:
        if row["config"] is not None:
            score = math.log(row["fwd"]) + math.log(row["bwd"])
            scores[row["config"]] = scores.get(row["config"], 0.0) + score
    return min(scores, key=scores.__getitem__)


def tune(out: Path | None) -> dict[str, Config]:
    """The best configuration of each kind, the second kind measured with the first one in use."""
    chosen, rows = {}, []
    for kind in ("reduce", "apply"):
        found = [row for case in CASES for row in measure(kind, case)]
        chosen[kind] = best(found)
        use(kind, chosen[kind])
        rows += found
        if out:
            out.write_text(json.dumps(rows) + "\n")
        report(kind, found)
    return chosen


def report(kind: str, rows: list[dict]) -> None:
    """Print the fastest configurations of each case, under the table's own."""
    for case, mode in itertools.product(CASES, ("fwd", "bwd")):
        here = [row for row in rows if row["case"] == str(case)]
        print(f"{kind} {case} {mode}: table {here[0][mode]}")
        for row in sorted(here, key=lambda row: row[mode])[:3]:
            print(f"    {row[mode]:8.2f} us  {row['config'] and tuple(row['config'])}")


def main() -> None:
    print(tune(Path(sys.argv[1]) if len(sys.argv) > 1 else None))


if __name__ == "__main__":
    main()
