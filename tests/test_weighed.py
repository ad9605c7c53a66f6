"""Convolutions whose weights learn from some of the images only."""

import pytest
import torch
from torch.nn import functional as F

from fastcyclegan.models.weighed import convolve


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bias", [None, random(5)], ids=["no bias", "bias"])
@pytest.mark.parametrize("weighed", [1, 2, 4])
def test_gradients_are_those_of_the_images_that_count(weighed, bias, first):
    x, weight, options = random(4, 3, 9, 8), random(5, 3, 4, 4), {"stride": 2, "padding": 1}
    y = convolve(x, weight, bias, weighed, first=first, **options)
    plain = F.conv2d(x, weight, bias, **options)
    assert torch.equal(y, plain)
    seed = random(*y.shape).detach()
    by = [t for t in (weight, bias) if t is not None]
    dx, *of_weights = torch.autograd.grad(y, [x, *by], seed)
    (expected,) = torch.autograd.grad(plain, x, seed, retain_graph=True)
    if first:
        expected[:weighed] = 0
    torch.testing.assert_close(dx, expected, rtol=1e-12, atol=1e-14)
    counted = torch.zeros_like(seed)
    counted[:weighed] = seed[:weighed]
    for mine, theirs in zip(of_weights, torch.autograd.grad(plain, by, counted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_without_a_number_it_is_the_plain_convolution():
    x, weight = random(2, 3, 5, 5), random(4, 3, 3, 3)
    pair = convolve(x, weight, None, padding=1), F.conv2d(x, weight, padding=1)
    assert torch.equal(*pair)
    gradients = (torch.autograd.grad(y.sum(), (x, weight)) for y in pair)
    assert all(map(torch.equal, *gradients))


def test_compiled_it_is_the_same():
    x, weight, bias = random(3, 3, 8, 8), random(4, 3, 4, 4), random(4)

    def function(x, weight, bias):
        return convolve(x, weight, bias, 2, stride=2, padding=1).square().sum()

    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    mine, theirs = (
        torch.autograd.grad(f(x, weight, bias), (x, weight, bias)) for f in (compiled, function)
    )
    for pair in zip(mine, theirs, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)
