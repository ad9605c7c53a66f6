"""Folded convolutions against torch's own, values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from fastcyclegan.models.folded import conv_from_few, conv_to_few


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("conv", "few", "many"), [(conv_from_few, 3, 8), (conv_to_few, 8, 3)])
def test_same_sums_as_the_plain_convolution(conv, few, many, bias, layout):
    """In fp64 to rounding: output, and the gradients of image, weight and bias."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator) + 0.5

    x = draw(2, few, 13, 19).contiguous(memory_format=layout).requires_grad_()
    weight = draw(many, few, 7, 7).contiguous(memory_format=layout).requires_grad_()
    shift = draw(many).requires_grad_() if bias else None
    inputs = [x, weight, *([shift] if bias else [])]
    wanted, got = F.conv2d(x, weight, shift), conv(x, weight, shift)
    assert got.shape == wanted.shape == (2, many, 7, 13)
    cotangent = draw(*wanted.shape)
    pairs = zip(
        [got, *torch.autograd.grad(got, inputs, cotangent)],
        [wanted, *torch.autograd.grad(wanted, inputs, cotangent)],
        strict=True,
    )
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.parametrize(("conv", "few", "many"), [(conv_from_few, 3, 16), (conv_to_few, 16, 3)])
def test_bf16_is_as_exact_as_the_plain_convolution(conv, few, many):
    """Error against fp64 of at most twice torch's own; channels_last out."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, few, 20, 20, generator=generator)
    weight = torch.randn(many, few, 7, 7, generator=generator)
    x, weight = (t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, weight))
    truth = F.conv2d(x.double(), weight.double())
    got, plain = conv(x, weight), F.conv2d(x, weight)
    assert got.dtype == torch.bfloat16
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got - truth).abs().max() <= 2 * (plain - truth).abs().max()
