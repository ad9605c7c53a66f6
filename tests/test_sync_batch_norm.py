"""Batch norm over several processes against batch norm of their batches as one.

What one process computes alone is held to the contract of all ops.
"""

from functools import cache

import pytest
import torch

import numerics
from fastcyclegan.distributed import Ranks, of_all, sum_of_all
from fastcyclegan.kernels import dispatch
from fastcyclegan.kernels.batch_norm import batch_norm
from fastcyclegan.kernels.sync_batch_norm import sync_batch_norm
from numerics import image
from processes import on_ranks

# Images of each process.
SPLITS = ((2, 1), (0, 3), (3, 0))
IMPL = "triton" if dispatch.interpreted() else "ref"
RESULTS = ("y", "dx", "dweight", "dbias", "running_mean", "running_var")


def computed(norm, x: torch.Tensor, dy: torch.Tensor, **how) -> tuple[torch.Tensor, ...]:
    """RESULTS of one call."""
    affine = [image((1, 5, 1, 1), x.dtype, "cpu", seed).flatten() for seed in (1, 2)]
    running = torch.zeros(5, dtype=x.dtype), torch.ones(5, dtype=x.dtype)
    inputs = [t.requires_grad_() for t in (x.detach(), *affine)]
    y = norm(*inputs, *running, act="leaky_relu", **how)
    return y.detach(), *torch.autograd.grad(y, inputs, dy), *running


def whole() -> tuple[torch.Tensor, torch.Tensor]:
    return image((3, 5, 4, 6), torch.float64, "cpu"), image((3, 5, 4, 6), torch.float64, "cpu", 9)


def of_this_process(ranks: Ranks) -> list[tuple[torch.Tensor, ...]]:
    parts = [[t.split(sizes)[ranks.rank] for t in whole()] for sizes in SPLITS]
    for message in (of_all, sum_of_all):
        torch.library.opcheck(message, (torch.arange(3.0),))
    return [computed(sync_batch_norm, *part, impl=IMPL) for part in parts]


@cache
def everyones() -> list[list[tuple[torch.Tensor, ...]]]:
    return on_ranks(2, of_this_process)


@pytest.mark.parametrize("case", range(len(SPLITS)), ids=str)
def equals_one_batch(case: int) -> None:
    y, dx, *sums, mean, var = computed(batch_norm, *whole(), impl="ref")
    first, second = (dict(zip(RESULTS, found[case], strict=True)) for found in everyones())
    together = [
        *(torch.cat([first[name], second[name]]) for name in RESULTS[:2]),
        *(first[name] + second[name] for name in RESULTS[2:4]),
    ]
    torch.testing.assert_close(together, [y, dx, *sums], rtol=1e-10, atol=1e-12)
    for found in (first, second):
        running = [found[name] for name in RESULTS[4:]]
        torch.testing.assert_close(running, [mean, var], rtol=1e-10, atol=1e-12)


if dispatch.interpreted():
    test_kernels_of_two_processes_equal_one_batch = pytest.mark.interpreter(equals_one_batch)
else:
    test_two_processes_equal_one_batch = equals_one_batch

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) == len(SPLITS)
