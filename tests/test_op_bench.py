"""The benches of the ops: what they count, and that every provider computes the same."""

import pytest
import torch

from bench import (
    bench_augment,
    bench_batch_norm,
    bench_image_pool,
    bench_instance_norm,
    bench_reflection_pad,
)
from bench.op_bench import DEVICE, ImageCase, table
from fastcyclegan.kernels.augment import augment_ref
from fastcyclegan.kernels.philox import POOL_A, philox_ref

MODULES = (
    bench_augment,
    bench_batch_norm,
    bench_image_pool,
    bench_instance_norm,
    bench_reflection_pad,
)
OPS = [module.OP for module in MODULES]
# Of the largest value: one rounding of an fp32 result, none where images are copied, a few ulp of
# bf16 for what PyTorch's own modules compute in bf16.
LARGEST_ERROR = {"augment": 2.0**-23, "image_pool": 0.0}


@pytest.mark.parametrize("provider", ["ref", "native"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_providers_agree(op, provider):
    for case in op.small:
        error = op.run(case, provider).error()
        if provider == "native":
            # In bf16 some of PyTorch's outputs are on the other side of the ReLU.
            error.pop("dx", None)
        assert error and max(error.values()) <= LARGEST_ERROR.get(op.name, 2.0**-5)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_rows(op, monkeypatch):
    case = op.small[0]
    monkeypatch.setattr("bench.op_bench.copy_gb_per_s", lambda: 100.0)
    rows = op.rows_of(case, "ref")
    assert [row["mode"] for row in rows] == list(op.modes)
    for row in rows:
        seconds = row["us"]["median"] / 1e6
        assert row["GB_per_s"] == pytest.approx(row["counted_bytes"] / seconds / 1e9, abs=0.06)
        assert row["of_copy"] == pytest.approx(row["GB_per_s"] / 100, abs=0.002)
    lines = table({"copy_GB_per_s": 100, "rows": rows}).splitlines()
    assert len(lines) == 1 + len(op.modes) and all(str(case) in line for line in lines[1:])


def test_bytes_of_augment():
    case = ImageCase((2, 3, 8, 6), pad=2)
    pixels, plan, size = bench_augment.draw(case)
    y = augment_ref(pixels, *plan.to(DEVICE), size, case.dtype, pad=2)
    assert bench_augment.counted_bytes(case, "fwd") == 2 * 3 * 8 * 6 + y.numel() * 2


def test_bytes_of_reflection_pad():
    x = torch.zeros(2, 5, 4, 6, dtype=torch.bfloat16)
    y = bench_reflection_pad.PADS["ref"](x, 1)
    forward = bench_reflection_pad.counted_bytes(ImageCase(tuple(x.shape), pad=1), "fwd")
    assert forward == x.nbytes + y.nbytes
    both = bench_reflection_pad.counted_bytes(ImageCase(tuple(x.shape), pad=1), "fwd_bwd")
    assert both == 2 * forward


def test_bytes_of_batch_norm():
    """Outside of backward's three inputs and its result, what three kernels read and write."""
    case = bench_batch_norm.Case((2, 5, 4, 6))
    x = 2 * 5 * 4 * 6 * 2
    assert bench_batch_norm.counted_bytes(case, "fwd") == 3 * x
    assert bench_batch_norm.counted_bytes(case, "bwd") == 5 * x
    assert bench_batch_norm.counted_bytes(case, "fwd_bwd") == 8 * x


def test_every_second_image_of_the_pool_is_swapped():
    """What makes its bytes three times those of the batch."""
    for n in (1, 2, 8):
        coins = philox_ref(bench_image_pool.SEED, POOL_A, bench_image_pool.numbers(n))[0]
        swaps = (coins >= 2**31).flatten()
        assert swaps[::2].all() and not swaps[1::2].any()
