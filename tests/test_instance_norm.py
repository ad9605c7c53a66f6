"""What the contract does not ask of this op: its skip, chains of blocks, over 2^31 elements."""

import pytest
import torch

import numerics
from fastcyclegan.kernels import dispatch
from fastcyclegan.kernels.instance_norm import (
    instance_norm,
    instance_norm_pad,
    instance_norm_ref,
)
from fastcyclegan.kernels.reflection_pad import pad_ref
from numerics import image, on_devices
from op_specs import INSTANCE_NORM

SMALL = (2, 5, 6, 7)


def trunk(x, w, norm_pad, norm):
    """A stem and two residual blocks; ``norm_pad`` gives a padded image and the skip."""

    def conv(t):
        # cuDNN leaves channels_last for fp64.
        y = torch.nn.functional.conv2d(t, w)
        return y.contiguous(memory_format=torch.channels_last)

    padded, skip = norm_pad(x, act="relu")
    for _ in range(2):
        y = norm(conv(padded), act="relu", pad=1)
        padded, skip = norm_pad(conv(y), residual=skip)
    return skip.square().mean() + padded.mean()


def fused_trunk(x, w):
    return trunk(
        x,
        w,
        lambda x, **options: instance_norm_pad(x, **options, impl="triton"),
        lambda x, **options: instance_norm(x, **options, impl="triton"),
    )


def plain_trunk(x, w):
    return trunk(x, w, lambda x, **o: instance_norm_pad(x, **o, impl="ref"), instance_norm_ref)


def trunk_inputs(dtype, device):
    w = image((4, 4, 3, 3), dtype, device, seed=1).contiguous(memory_format=torch.channels_last)
    return image((2, 4, 6, 8), dtype, device).requires_grad_(), w.requires_grad_()


@on_devices
def test_trunk_matches_reference(device):
    inputs = trunk_inputs(torch.float64, device)
    expected = torch.autograd.grad(plain_trunk(*inputs), inputs)
    for actual, truth in zip(
        torch.autograd.grad(fused_trunk(*inputs), inputs), expected, strict=True
    ):
        torch.testing.assert_close(actual, truth, rtol=1e-10, atol=1e-12)


@on_devices
def test_compiled_trunk_equals_eager(device):
    inputs = trunk_inputs(torch.float32, device)
    compiled = torch.compile(fused_trunk, fullgraph=True, dynamic=False)
    eager, found = fused_trunk(*inputs), compiled(*inputs)
    torch.testing.assert_close(found, eager, rtol=1e-6, atol=0)
    expected = torch.autograd.grad(eager, inputs)
    for actual, truth in zip(torch.autograd.grad(found, inputs), expected, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-4, atol=1e-6)


@on_devices
def test_skip_shares_the_memory_of_the_padded_output(device):
    x = image(SMALL, torch.float32, device)
    padded, skip = instance_norm_pad(x, act="relu", pad=2, impl="triton")
    assert skip.untyped_storage().data_ptr() == padded.untyped_storage().data_ptr()
    assert torch.equal(padded, pad_ref(skip, 2))


@on_devices
@pytest.mark.parametrize("used", ((0,), (1,), (0, 1)))
@pytest.mark.parametrize("case", ("relu", "residual", "affine residual relu"))
def test_gradients_of_padded_output_and_skip(case, used, device):
    tensors, options = INSTANCE_NORM.case(case, SMALL, torch.float64, device)
    grads = []
    for impl in ("triton", "ref"):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        outputs = instance_norm_pad(**leaves, **options, pad=2, impl=impl)
        chosen = [outputs[i] for i in used]
        dys = [image(t.shape, t.dtype, device, seed=5 + i) for i, t in enumerate(chosen)]
        grads.append(torch.autograd.grad(chosen, list(leaves.values()), dys))
    for actual, truth in zip(*grads, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-10, atol=1e-12)


@on_devices
@pytest.mark.parametrize("act", ("none", "relu"))
def test_parameters_in_fp32_are_not_rounded_to_the_dtype_of_x(act, device):
    """As the networks have them: then most results of half precision are those of fp32, rounded."""
    tensors, _ = INSTANCE_NORM.case("affine", (2, 5, 16, 16), torch.float16, device)
    dy = image((2, 5, 16, 16), torch.float16, device, seed=4)
    assert tensors["weight"].dtype == tensors["bias"].dtype == torch.float32
    found = []
    for dtype in (torch.float16, torch.float32):
        x = tensors["x"].to(dtype).requires_grad_()
        y = instance_norm(**tensors | {"x": x}, act=act, impl="triton")
        found.append((y, torch.autograd.grad(y, x, dy.to(dtype))[0]))
    for narrow, wide in zip(*found, strict=True):
        assert float((narrow != wide.half()).float().mean()) < 0.01


def test_reference_pads_what_it_returns():
    x = image(SMALL, torch.float32, "cpu")
    padded, skip = instance_norm_pad(x, act="relu", pad=2)
    assert torch.equal(skip, instance_norm_ref(x, "relu"))
    assert torch.equal(padded, pad_ref(skip, 2))


@pytest.mark.cuda
def test_more_than_2_to_the_31_elements():
    x = torch.randn((9, 512, 1000, 256), device="cuda", dtype=torch.bfloat16)
    x = x.permute(0, 3, 1, 2).requires_grad_()
    assert x.numel() < 2**31 < x.numel() * 2
    x = torch.cat([x, x]).detach().requires_grad_()
    y = instance_norm(x, act="relu", pad=1)
    dx = torch.autograd.grad(y, x, y)[0]
    last = x[-1:].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y_last = instance_norm(last, act="relu", pad=1)
    # Another division of the pixels: not the same bits.
    torch.testing.assert_close(y[-1:], y_last, rtol=2**-7, atol=1e-3)
    dx_last = torch.autograd.grad(y_last, last, y_last)[0]
    torch.testing.assert_close(dx[-1:], dx_last, rtol=2**-6, atol=1e-2)


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) == 14
