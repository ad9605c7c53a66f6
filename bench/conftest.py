"""What every bench run records beside its figures: schema, machine, versions, commit, ceilings."""

from __future__ import annotations

from typing import Any


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Add the machine, and what it reached in this run in a copy and in a matrix product."""
    import torch

    from bench.ceilings import DEVICE, copy_gb_per_s, matmul_tflop_per_s
    from bench.probes.__main__ import machine
    from bench.recorded import BENCH_SCHEMA

    machine_info["schema"] = BENCH_SCHEMA
    machine_info["fastcyclegan"] = machine(DEVICE, None) | {
        "copy_GB_per_s": copy_gb_per_s(),
        "matmul_TFLOP_per_s": {
            name: matmul_tflop_per_s(getattr(torch, name)) for name in ("float32", "bfloat16")
        },
    }
