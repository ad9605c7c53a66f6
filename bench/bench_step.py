"""The ladder of one CycleGAN step: junyanz's own code, ``reference``, ``fused``, compiled.

    pytest bench/bench_step.py --benchmark-only

The large size is marked slow (``-m slow``).
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.ladder import Ladder
from bench.step_rows import DEVICE, Row, Size

BF16, COMPILED = {"precision": "bf16"}, {"compile": True}
ROWS = [
    Row("junyanz fp32 eager", peer={}, benchmark=True),
    Row("reference fp32 eager", {"impl": "reference"}),
    Row("fused fp32 eager"),
    Row("fused bf16 eager", BF16),
    Row("fused fp32 compiled, block", COMPILED),
    Row("fused bf16 compiled, block", BF16 | COMPILED),
    Row("fused bf16 compiled, step", BF16 | COMPILED | {"compile_scope": "step"}),
]
if DEVICE.type == "cuda":
    captured = BF16 | COMPILED | {"cuda_graph": "on"}
    ROWS.append(Row("fused bf16 compiled, block, captured", captured))


def size(pixels: int, width: int, netG: str) -> Size:
    """Of images of ``pixels`` px, and of networks with ``width`` filters."""
    images = {"load_size": pixels, "crop_size": pixels}
    options = images | {"ngf": width, "ndf": width, "netG": netG}
    return Size(f"{pixels} px, ngf {width}, {netG}", options)


SMALL = Ladder("step", ROWS, size(64, 32, "resnet_6blocks"), batch=1, rounds=9)
LARGE = Ladder("step", ROWS, size(128, 64, "resnet_9blocks"), batch=1, rounds=5)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def bench_small_step(benchmark: Any, row: Row) -> None:
    SMALL.report(benchmark, row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def bench_large_step(benchmark: Any, row: Row) -> None:
    LARGE.report(benchmark, row)
