"""Each op against its reference on this machine, as ``python -m fastcyclegan.doctor`` tells it."""

from collections.abc import Callable, Mapping

import torch

from fastcyclegan.kernels.augment import augment
from fastcyclegan.kernels.batch_norm import batch_norm
from fastcyclegan.kernels.image_pool import image_pool
from fastcyclegan.kernels.instance_norm import instance_norm, instance_norm_pad
from fastcyclegan.kernels.philox import POOL_A
from fastcyclegan.kernels.reflection_pad import reflection_pad

# Of fp32 on numbers of size 1, with room for another order of summation.
TOLERANCE = 1e-4
Run = Callable[[torch.Tensor, str], list[torch.Tensor]]
SHAPE = (2, 16, 12, 10)


def errors(device: torch.device, impl: str) -> dict[str, float]:
    """Largest error of ``impl`` by op: fp32 against the reference in fp64.

    Results and gradients, in units of the largest true value.
    """
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) + 1
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    found: dict[str, float] = {}
    for name, run in OPS.items():
        pairs = zip(run(x, impl), run(x.double(), "ref"), strict=True)
        found[name] = max(float((y - true).abs().max() / true.abs().max()) for y, true in pairs)
    return found


def _with_gradient(function: Callable[..., tuple[torch.Tensor, ...]]) -> Run:
    def run(x: torch.Tensor, impl: str) -> list[torch.Tensor]:
        leaf = x.detach().clone().requires_grad_()
        outputs = function(leaf, impl)
        dys = [torch.cos(torch.arange(y.numel(), device=y.device)).view(y.shape) for y in outputs]
        layout = {"memory_format": torch.channels_last}
        dys = [dy.to(y.dtype).contiguous(**layout) for dy, y in zip(dys, outputs, strict=True)]
        return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaf, dys)]

    return run


def _pool(x: torch.Tensor, impl: str) -> list[torch.Tensor]:
    pool, count = x.flip(0).contiguous(memory_format=torch.channels_last), torch.tensor(2)
    pool, count = pool.clone(), count.to(x.device)
    seed, number = torch.zeros_like(count), torch.arange(len(x), device=x.device)
    return [image_pool(pool, count, x, seed, POOL_A, number, impl=impl), pool]


def _augment(x: torch.Tensor, impl: str) -> list[torch.Tensor]:
    n, c, h, w = x.shape
    pixels = (torch.arange(n * c * h * w, device=x.device) % 251).to(torch.uint8).view(-1, c)
    plan = torch.tensor([[0, h * w], [w, w], [1, 2], [2, 0], [0, 1]], device=x.device)
    return [augment(pixels, *plan, (h - 2, w - 2), x.dtype, impl=impl)]


OPS: Mapping[str, Run] = {
    "instance_norm": _with_gradient(lambda x, impl: (instance_norm(x, act="relu", impl=impl),)),
    "instance_norm_pad": _with_gradient(
        lambda x, impl: instance_norm_pad(x, residual=x, impl=impl)
    ),
    "batch_norm": _with_gradient(lambda x, impl: (batch_norm(x, act="leaky_relu", impl=impl),)),
    "reflection_pad": _with_gradient(lambda x, impl: (reflection_pad(x, 3, impl=impl),)),
    "image_pool": _pool,
    "augment": _augment,
}
