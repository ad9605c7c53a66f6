"""The norm that hands on a padded image and its skip, alone and in a chain of residual blocks."""

import pytest
import torch

import numerics
from fastcyclegan.kernels import dispatch, norm_config
from fastcyclegan.kernels.instance_norm import (
    instance_norm,
    instance_norm_pad,
    instance_norm_ref,
)
from fastcyclegan.kernels.reflection_pad import pad_ref
from numerics import DEVICES, image, make

SMALL = (2, 5, 6, 7)
on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch):
    """The interpreter runs programs one after the other: 6 instead of hundreds."""
    if dispatch.interpreted():
        monkeypatch.setattr(norm_config, "PROGRAMS", 6)


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
    tensors, options = make(case, SMALL, torch.float64, device)
    grads = []
    for impl in ("triton", "ref"):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        outputs = instance_norm_pad(**leaves, **options, pad=2, impl=impl)
        chosen = [outputs[i] for i in used]
        dys = [image(t.shape, t.dtype, device, seed=5 + i) for i, t in enumerate(chosen)]
        grads.append(torch.autograd.grad(chosen, list(leaves.values()), dys))
    for actual, truth in zip(*grads, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-10, atol=1e-12)


def test_reference_pads_what_it_returns():
    x = image(SMALL, torch.float32, "cpu")
    padded, skip = instance_norm_pad(x, act="relu", pad=2)
    assert torch.equal(skip, instance_norm_ref(x, "relu"))
    assert torch.equal(padded, pad_ref(skip, 2))


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) > 10
