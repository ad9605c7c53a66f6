"""The division of an image among programs, up to the most pixels that an int32 may count."""

import pytest
import torch

import numerics
from fastcyclegan.kernels import dispatch
from fastcyclegan.kernels.augment import PLAN, augment
from fastcyclegan.kernels.batch_norm import batch_norm
from fastcyclegan.kernels.dispatch import LARGEST, jit, tl
from fastcyclegan.kernels.image_pool import image_pool
from fastcyclegan.kernels.instance_norm import instance_norm
from fastcyclegan.kernels.norm_config import (
    apply_config,
    batch_config,
    bounds_of,
    reduce_config,
    runs_of,
    split,
)
from fastcyclegan.kernels.reflection_pad import reflection_pad
from numerics import on_devices

CONFIGS = (reduce_config, batch_config, apply_config)
ITEMSIZES = (2, 4, 8)


@jit
def _last_run_kernel(found_ptr, pixels, run):
    runs = runs_of(pixels, run)
    start, end = bounds_of(runs - 1, run, pixels)
    tl.store(found_ptr, runs)
    tl.store(found_ptr + 1, start)
    tl.store(found_ptr + 2, end)


@on_devices
@pytest.mark.parametrize("groups", (1, 3, 1024))
@pytest.mark.parametrize("pixels", (1, 1000, 46340**2, LARGEST))
def test_the_last_run_ends_with_the_image(pixels, groups, device):
    """In int32, in which a sum beyond the image wraps."""
    for config in (make(channels, 2) for make in CONFIGS for channels in (1, 256)):
        # as on a GPU: the more runs, the further the last one would go
        runs, run = split(pixels, groups, config._replace(programs=512))
        found = torch.zeros(3, dtype=torch.int32, device=device)
        _last_run_kernel[(1,)](found, pixels, run)
        assert found.tolist() == [runs, (runs - 1) * run, pixels]


@pytest.mark.parametrize("itemsize", ITEMSIZES)
@pytest.mark.parametrize("make", CONFIGS)
def test_loops_may_go_beyond_the_largest_image(make, itemsize):
    """By a step of the loop, and what it loads ahead."""
    for channels in (1, 3, 64, 1024):
        config = make(channels, itemsize)
        assert LARGEST + 2 * config.block_p * config.unroll < 2**31


def at_most(op: str, more: int) -> None:
    """A call with LARGEST pixels or values, and ``more``, that computes nothing."""
    x = torch.empty((1, 1, 1, LARGEST + more), dtype=torch.bfloat16)
    if op == "instance_norm":
        instance_norm(x, impl="triton")
    elif op == "batch_norm":
        batch_norm(x.view(-1, 1, 1, 1), impl="triton")
    elif op == "reflection_pad":
        reflection_pad(x, 0, impl="triton")
    elif op == "image_pool":
        numbers = [torch.zeros(size, dtype=torch.int64) for size in ((), (), 1)]
        image_pool(x, numbers[0], x, numbers[1], 0, numbers[2], impl="triton")
    else:
        plan = [torch.empty(1, dtype=torch.int64) for _ in PLAN]
        pixels = torch.empty((1, 1), dtype=torch.uint8)
        augment(pixels, *plan, (1, LARGEST + more), impl="triton")


OPS = ("instance_norm", "batch_norm", "reflection_pad", "image_pool", "augment")


@pytest.mark.parametrize("op", OPS)
def test_more_than_an_int32_counts_is_refused(op):
    with torch.device("meta"):
        at_most(op, 0)
        with pytest.raises(ValueError, match=f'more than {LARGEST} .*impl="ref"'):
            at_most(op, 1)


@pytest.mark.cuda
def test_the_last_run_of_a_huge_image():
    x = torch.zeros((1, 1, 46340, 46340), device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    x[..., -1000:, :] = 1
    part = 1000 / 46340
    low, high = (((v - part) / (part - part**2) ** 0.5) for v in (0, 1))
    for norm in (instance_norm, batch_norm):
        y = norm(x)
        torch.testing.assert_close(float(y.min()), low, rtol=2**-7, atol=0)
        torch.testing.assert_close(float(y.max()), high, rtol=2**-7, atol=0)
        assert bool((y[0, 0, -1] == y.max()).all()) and bool((y[0, 0, 0] == y.min()).all())


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) == 12
