"""Reflection padding: the reference against NumPy, the kernels against the reference.

Tests with a ``device`` run the kernels: on a GPU, or in a process of their own under Triton's
interpreter, which ``test_under_interpreter`` starts.
"""

import functools

import numpy as np
import pytest
import torch

import numerics
from fastcyclegan.kernels import dispatch
from fastcyclegan.kernels.reflection_pad import (
    PADDINGS,
    _reflection_pad_bwd,
    _reflection_pad_fwd,
    pad_ref,
    reflection_pad,
)
from numerics import DEVICES, DTYPES, LAYOUTS, assert_close, image, in_layout

# The smallest images for each pad, the images' and the trunk's channels, odd sizes.
CASES = [
    ((2, 3, 17, 13), 3),
    ((2, 3, 17, 13), 0),
    ((1, 63, 5, 9), 1),
    ((3, 1, 4, 6), 3),
    ((1, 5, 2, 2), 1),
    ((1, 130, 3, 4), 2),
    ((2, 64, 5, 33), 3),
]
on_devices = pytest.mark.parametrize("device", DEVICES)
cases = pytest.mark.parametrize(("shape", "pad"), CASES, ids=str)


def run(x, pad, dy=None, impl="triton"):
    """y and dx."""
    x = x.detach().requires_grad_()
    y = reflection_pad(x, pad, impl=impl)
    dy = image(y.shape, y.dtype, y.device, seed=1) if dy is None else dy
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@cases
def test_reference_matches_numpy(shape, pad, layout):
    x = image(shape, torch.float64, "cpu")
    y = pad_ref(x, pad)
    dy = in_layout(image(y.shape, y.dtype, "cpu", seed=1), layout)
    np.testing.assert_array_equal(y, numerics.numpy_pad(x.numpy(), pad))
    dx = run(x, pad, dy, "ref")[1]
    np.testing.assert_allclose(dx, numerics.numpy_fold(dy.numpy(), pad), atol=1e-12)


@on_devices
@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(shape, pad, dtype, device):
    x = image(shape, dtype, device)
    y, dx = run(x, pad)
    dy = image(y.shape, dtype, device, seed=1)
    truth = run(x.double(), pad, dy.double(), "ref")[1]
    assert torch.equal(y, pad_ref(x, pad))
    assert_close(dx, truth, run(x, pad, dy, "ref")[1], "dx")


@on_devices
def test_gradcheck(device):
    x = image((1, 2, 4, 5), torch.float64, device).requires_grad_()
    op = functools.partial(reflection_pad, pad=3, impl="triton")
    assert torch.autograd.gradcheck(op, x, fast_mode=True)


@on_devices
def test_opcheck(device):
    x = image((2, 3, 4, 5), torch.float32, device).requires_grad_()
    torch.library.opcheck(_reflection_pad_fwd, (x, 2))
    torch.library.opcheck(_reflection_pad_bwd, (x.detach(), 1))


@on_devices
def test_compiled_equals_eager(device):
    def padded(x):
        return reflection_pad(x.sin(), 2, impl="triton").square()

    x = image((2, 3, 7, 5), torch.float32, device).requires_grad_()
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(padded, fullgraph=True, dynamic=False, backend=backend)
    found, eager = compiled(x), padded(x)
    torch.testing.assert_close(found, eager, rtol=1e-6, atol=1e-7)
    dx, expected = (torch.autograd.grad(y, x, eager.detach())[0] for y in (found, eager))
    torch.testing.assert_close(dx, expected, rtol=1e-5, atol=1e-6)


@on_devices
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, device):
    x = image((2, 5, 6, 7), torch.float32, device)
    dy = image((2, 5, 10, 11), torch.float32, device, seed=1)
    x, dy = in_layout(x, layout), in_layout(dy, layout)
    same = [t.contiguous(memory_format=torch.channels_last) for t in (x, dy)]
    for found, expected in zip(run(x, 2, dy), run(same[0], 2, same[1]), strict=True):
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


@on_devices
@cases
def test_reads_and_writes_no_other_memory(shape, pad, device):
    x = image(shape, torch.float32, device)
    y, dx = run(x, pad)
    dy = numerics.guarded(image(y.shape, torch.float32, device, seed=1))
    with numerics.poisoned():
        found = run(numerics.guarded(x), pad, dy)
    assert torch.equal(found[0], y) and torch.equal(found[1], dx)


@on_devices
def test_same_bits_twice(device):
    x = image((2, 64, 9, 7), torch.float32, device)
    for once, again in zip(run(x, 3), run(x, 3), strict=True):
        assert torch.equal(once, again)


@on_devices
def test_empty_batch(device):
    y, dx = run(image((0, 3, 5, 4), torch.float32, device), 2)
    assert y.shape == (0, 3, 9, 8) and dx.shape == (0, 3, 5, 4)


@pytest.mark.cuda
def test_more_than_2_to_the_31_elements():
    x = torch.randn((9, 1000, 1000, 256), device="cuda", dtype=torch.bfloat16).permute(0, 3, 1, 2)
    y = reflection_pad(x, 1)
    assert x.numel() > 2**31
    assert torch.equal(y[-1:], reflection_pad(x[-1:], 1))
    dx = _reflection_pad_bwd(y, 1)
    assert torch.equal(dx[-1:], _reflection_pad_bwd(y[-1:], 1))


UNSUPPORTED = [
    (lambda x: reflection_pad(x, 4, impl="ref"), ValueError, "more than 4 pixels, got 4 x 5"),
    (lambda x: reflection_pad(x, -1, impl="ref"), ValueError, "pad=-1"),
    (lambda x: reflection_pad(x, 1, impl="fast"), ValueError, "impl='fast'"),
    (lambda x: pad_ref(x, 1, "circular"), ValueError, "padding='circular'"),
]
UNSUPPORTED_BY_KERNELS = [
    (lambda x: reflection_pad(x, 4, impl="triton"), ValueError, "more than 4 pixels, got 4 x 5"),
    (lambda x: reflection_pad(x, -1, impl="triton"), ValueError, "pad=-1"),
    (lambda x: reflection_pad(x[0], 1, impl="triton"), ValueError, r"not \(N, C, H, W\)"),
    (lambda x: reflection_pad(x.int(), 1, impl="triton"), TypeError, 'impl="ref"'),
]


@pytest.mark.parametrize(("call", "error", "says"), UNSUPPORTED)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call(image((2, 3, 4, 5), torch.float32, "cpu"))


@on_devices
@pytest.mark.parametrize(("call", "error", "says"), UNSUPPORTED_BY_KERNELS)
def test_kernels_refuse_bad_input(call, error, says, device):
    with pytest.raises(error, match=says):
        call(image((2, 3, 4, 5), torch.float32, device))


@pytest.mark.parametrize("padding", PADDINGS)
def test_paddings_of_the_reference(padding):
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    row = {"reflect": [3, 2, 3, 2], "replicate": [0, 0, 1, 1], "zero": [0, 0, 0, 0]}[padding]
    assert pad_ref(x, 1, padding)[0, 0, 0].tolist() == row


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) > 50
