"""Part dcgan: every way to do one DCGAN step of batch 128, one lever after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.examples import checkout
from bench.gpu_suite.cases import Case, Plan, Result
from bench.gpu_suite.ladder_part import BF16, CAPTURED, COMPILED, REFERENCE
from bench.gpu_suite.steps import step_cases, table
from bench.step_rows import Row, Size
from fastcyclegan.presets import PRESETS

ROWS = [
    Row("pytorch/examples, fp32 with TF32 convolutions", peer={}, benchmark=True),
    Row("reference fp32", REFERENCE, benchmark=True),
    Row("reference tf32", REFERENCE | {"precision": "tf32"}, benchmark=True),
    Row("reference, autocast bf16", REFERENCE, autocast=True, benchmark=True),
    Row(
        "reference, autocast bf16, torch.compile",
        REFERENCE,
        autocast=True,
        mode="default",
        benchmark=True,
    ),
    Row("fused bf16, references for kernels", BF16, kernels=False),
    Row("+ kernels", BF16),
    Row("+ compiled blocks", COMPILED),
    Row("+ one CUDA graph", CAPTURED),
    Row("  with cudnn.benchmark", CAPTURED, benchmark=True),
    Row("  with images drawn in each step: the full step", CAPTURED, drawn=True),
]
FIRST = (
    "  with images drawn in each step: the full step",
    "pytorch/examples, fp32 with TF32 convolutions",
    "reference tf32",
    "+ kernels",
    "+ one CUDA graph",
    "reference, autocast bf16, torch.compile",
)
SIZE = Size("64 px", PRESETS["dcgan"])
TINY = Size("64 px, ngf 4", PRESETS["dcgan"] | {"ngf": 4, "ndf": 4})
BATCH, TINY_BATCH = 128, 4
REHEARSED = ("pytorch/examples, fp32 with TF32 convolutions", "reference fp32", "+ kernels")


def cases(plan: Plan) -> Sequence[Case]:
    """The rows, the peer's only where its checkout is."""
    rows = [row for row in ROWS if row.peer is None or checkout() is not None]
    if not plan.rehearse:
        return list(step_cases(rows, SIZE, ((BATCH,),), "DCGAN step", first=FIRST))
    rows = [row for row in rows if row.name in REHEARSED]
    return list(step_cases(rows, TINY, ((TINY_BATCH,),), "DCGAN step"))


def lines(results: Mapping[str, Result]) -> list[str]:
    """The ladder."""
    return table(ROWS, results)
