"""A convolution whose weights learn from some of the images only.

A discriminator judges real images, pooled fakes and current fakes by the same weights: one batch.
The loss on the current fakes is the generators', so that it passes a gradient to those fakes and
none to the weights; that on the others is the discriminator's own, the other way round.
"""

from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    weighed: int | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    first: bool = False,
) -> torch.Tensor:
    """``F.conv2d(x, weight, bias, stride, padding)``, with a backward that leaves things out.

    Args:
        x: (N, C, H, W).
        weight: (O, C, K, L).
        bias: (O,) or None.
        weighed: the gradients of weight and bias are those of the first ``weighed`` images; None
            for all.
        stride, padding: pixels.
        first: with ``weighed``, that ``x`` is the network's input: the first ``weighed`` of its
            images get no gradient, but 0.
    """
    if weighed is None:
        return F.conv2d(x, weight, bias, stride, padding)
    return _Weighed.apply(x, weight, bias, weighed, stride, padding, first)


class _Weighed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        weighed: int,
        stride: int,
        padding: int,
        first: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = weighed, stride, padding, first, bias is not None
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weighed, stride, padding, first, has_bias = ctx.options
        begin = weighed if first else 0

        def gradients(some: slice, *mask: bool) -> tuple[torch.Tensor, ...]:
            bias_sizes = [weight.shape[0]] if mask[2] else None
            where = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
            return torch.ops.aten.convolution_backward(
                dy[some], x[some], weight, bias_sizes, *where, mask
            )

        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = gradients(slice(begin, None), True, False, False)[0]
            if begin:
                dx = torch.cat([torch.zeros_like(x[:begin]), dx])
        if ctx.needs_input_grad[1]:
            _, dweight, dbias = gradients(slice(weighed), False, True, has_bias)
        return dx, dweight, dbias, None, None, None, None
