"""The ladder of one DCGAN step: pytorch/examples' own code, ``reference``, ``fused``, compiled.

    pytest bench/bench_dcgan.py --benchmark-only

64 pixels, width 64, batch 64; what compiles is marked slow (``-m slow``).
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.ladder import Ladder
from bench.step_rows import Row, Size
from fastcyclegan.config import PRESETS

BATCH = 64
SIZE = Size("64 px", PRESETS["dcgan"])
BF16 = {"precision": "bf16"}
ROWS = [
    Row("pytorch/examples fp32 eager", peer={}, benchmark=True),
    Row("reference fp32 eager", {"impl": "reference"}),
    Row("fused fp32 eager"),
    Row("fused bf16 eager", BF16),
]
COMPILED = [*ROWS[:1], ROWS[-1], Row("fused bf16 compiled", BF16 | {"compile": True})]
EAGER_LADDER = Ladder("DCGAN step", ROWS, SIZE, BATCH, rounds=5)
COMPILED_LADDER = Ladder("DCGAN step", COMPILED, SIZE, BATCH, rounds=5)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def bench_dcgan_step(benchmark: Any, row: Row) -> None:
    EAGER_LADDER.report(benchmark, row)


@pytest.mark.slow
@pytest.mark.parametrize("row", COMPILED, ids=lambda row: row.name)
def bench_compiled_dcgan_step(benchmark: Any, row: Row) -> None:
    COMPILED_LADDER.report(benchmark, row)
