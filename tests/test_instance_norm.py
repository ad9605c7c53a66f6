"""Instance norm: the reference against NumPy, the kernels against the reference.

Tests with a ``device`` run the kernels: on a GPU, or in a process of their own under Triton's
interpreter, which ``test_under_interpreter`` starts.
"""

import numpy as np
import pytest
import torch

import numerics
from fastcyclegan.kernels import dispatch, norm_config
from fastcyclegan.kernels.instance_norm import (
    _instance_norm_fwd,
    instance_norm,
    instance_norm_pad,
    instance_norm_ref,
)
from fastcyclegan.kernels.instance_norm_bwd import instance_norm_bwd
from numerics import CASES, DEVICES, DTYPES, LAYOUTS, assert_close, image, in_layout, make

SHAPES = ((2, 3, 9, 7), (1, 63, 17, 13), (1, 130, 8, 8), (3, 1, 4, 6), (1, 5, 4, 4))
SMALL = (2, 5, 6, 7)

on_devices = pytest.mark.parametrize("device", DEVICES)
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch):
    """The interpreter runs programs one after the other: 6 instead of hundreds."""
    if dispatch.interpreted():
        monkeypatch.setattr(norm_config, "PROGRAMS", 6)


def run(tensors, options, dy=None, impl="triton"):
    """y and the gradient of every tensor input, by name."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = instance_norm(**leaves, **options, impl=impl)
    dy = image(y.shape, y.dtype, y.device, seed=4) if dy is None else dy
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | {f"d{k}": g for k, g in zip(leaves, grads, strict=True)}


def wide(tensors):
    return {name: t.double() for name, t in tensors.items()}


@on_devices
@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference_in_fp64(case, dtype, device):
    for shape in SHAPES if dtype == torch.float32 or device == "cuda" else SHAPES[:1]:
        tensors, options = make(case, shape, dtype, device)
        dy = image(instance_norm(**tensors, **options).shape, dtype, device, seed=4)
        actual = run(tensors, options, dy)
        truth = run(wide(tensors), options, dy.double(), "ref")
        peer = run(tensors, options, dy, "ref")
        for name in truth:
            assert_close(actual[name], truth[name], peer[name], f"{name} of {case}, {shape}")


@on_devices
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", ("relu pad 1", "residual pad 1"))
def test_matches_reference_at_the_trunk_shape(case, dtype, device):
    shape = (1, 256, 64, 64) if device == "cuda" else (1, 64, 32, 64)
    tensors, options = make(case, shape, dtype, device)
    actual = run(tensors, options)
    dy = image(actual["y"].shape, dtype, device, seed=4)
    truth = run(wide(tensors), options, dy.double(), "ref")
    peer = run(tensors, options, dy, "ref")
    for name in truth:
        assert_close(actual[name], truth[name], peer[name], name)


@cases
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_matches_numpy(case, layout):
    tensors, options = make(case, SMALL, torch.float64, "cpu")
    y = instance_norm_ref(**tensors, **options)
    dy = in_layout(image(y.shape, y.dtype, "cpu", seed=4), layout)
    found = run(tensors, options, dy, "ref")
    arrays = {name: t.numpy() for name, t in tensors.items()}
    np.testing.assert_allclose(
        found["y"], numerics.numpy_instance_norm(**arrays, **options), atol=1e-12
    )
    grads = numerics.numpy_instance_norm_grads(**arrays, dy=dy.numpy(), **options)
    for name in tensors:
        np.testing.assert_allclose(found[f"d{name}"], grads[name], atol=1e-12, err_msg=name)


@on_devices
@cases
def test_gradcheck(case, device):
    tensors, options = make(case, (1, 2, 4, 5), torch.float64, device)
    names = list(tensors)

    def op(*values):
        return instance_norm(**dict(zip(names, values, strict=True)), **options, impl="triton")

    leaves = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(op, leaves, fast_mode=True)


@on_devices
@pytest.mark.parametrize("case", ("plain", "weight relu pad 1", "affine residual relu"))
def test_opcheck(case, device):
    tensors, options = make(case, SMALL, torch.float32, device)
    options = {"act": "none", "slope": 0.2, "residual_relu": False, "pad": 0} | options
    optional = [tensors.get(name) for name in ("weight", "bias", "residual")]
    for t in tensors.values():
        t.requires_grad_()
    args = (tensors["x"], *optional, *(options[k] for k in ("act", "slope", "residual_relu")))
    args = (*args, options["pad"], 1e-5)
    torch.library.opcheck(_instance_norm_fwd, args)
    with torch.no_grad():
        y, mean, rstd = _instance_norm_fwd(*args)
    x, weight, bias = (None if t is None else t.detach() for t in (args[0], *optional[:2]))
    saved = y if options["residual_relu"] else None
    has_residual = optional[2] is not None
    common = (x, saved, mean, rstd, weight, bias, options["act"], 0.2, has_residual, options["pad"])
    for dskip in (None, torch.ones_like(x)):
        torch.library.opcheck(instance_norm_bwd, (torch.ones_like(y), dskip, *common))


@on_devices
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_in_every_layout(layout, device):
    tensors, options = make("residual pad 1", SMALL, torch.float32, device)
    dy = image((2, 5, 8, 9), torch.float32, device, seed=4)
    same = in_layout(dy, "expanded").contiguous(memory_format=torch.channels_last)
    expected = run(tensors, options, same if layout == "expanded" else dy)
    found = run(tensors, options, in_layout(dy, layout))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@on_devices
def test_residual_in_every_layout(device):
    tensors, options = make("residual pad 1", SMALL, torch.float32, device)
    expected = run(tensors, options)["y"]
    for layout in ("nchw", "sliced"):
        other = tensors | {"residual": in_layout(tensors["residual"], layout)}
        assert torch.equal(run(other, options)["y"], expected)


@on_devices
@cases
def test_results_are_channels_last_and_the_same_twice(case, device):
    tensors, options = make(case, (1, 24, 23, 21), torch.float32, device)
    once, again = run(tensors, options), run(tensors, options)
    for name, t in once.items():
        assert torch.equal(t, again[name]), name
        if t.dim() == 4:
            assert t.is_contiguous(memory_format=torch.channels_last), name


@on_devices
@cases
def test_reads_and_writes_no_other_memory(case, device):
    tensors, options = make(case, SHAPES[0], torch.float32, device)
    expected = run(tensors, options)
    fenced = {name: numerics.guarded(t) for name, t in tensors.items()}
    dy = numerics.guarded(image(expected["y"].shape, torch.float32, device, seed=4))
    with numerics.poisoned():
        found = run(fenced, options, dy)
    assert all(torch.equal(found[name], t) for name, t in expected.items())


@on_devices
@cases
def test_empty_batch(case, device):
    tensors, options = make(case, (0, 5, 6, 7), torch.float32, device)
    found = run(tensors, options)
    assert found["dx"].shape == (0, 5, 6, 7)
    assert found["y"].shape == instance_norm_ref(**tensors, **options).shape
    assert all(not found[name].any() for name in ("dweight", "dbias") if name in found)


def statistics(x):
    """Mean and variance by the kernels."""
    _, mean, rstd = _instance_norm_fwd(x, None, None, None, "none", 0.2, False, 0, 1e-12)
    return mean.double(), rstd.double() ** -2 - 1e-12


@on_devices
@pytest.mark.parametrize("ratio", (0, 1, 10, 100, 1000))
@pytest.mark.parametrize("size", ((16, 16), (47, 43)))
def test_variance_of_data_far_from_zero(ratio, size, device):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *size, 8)) + ratio)
    x = x.to(device=device, dtype=torch.float32).permute(0, 3, 1, 2)
    mean, var = statistics(x)
    true_var, true_mean = torch.var_mean(x.double(), (2, 3), correction=0)
    assert float((var / true_var - 1).abs().max()) <= 1e-5
    assert float((mean - true_mean).abs().max()) <= 2e-7 * max(ratio, 1)


@on_devices
@pytest.mark.parametrize("rows", (1, 8))
@pytest.mark.parametrize("top", (-10, 1000))
def test_variance_where_the_top_is_unlike_the_rest(top, rows, device, monkeypatch):
    """The partial results are combined about the mean of the first ones."""
    monkeypatch.setattr(norm_config, "PROGRAMS", 16)
    x = np.random.default_rng(0).normal(size=(1, 128, 128, 4))
    x[:, :rows] = top
    x = torch.from_numpy(x).to(device=device, dtype=torch.float32).permute(0, 3, 1, 2)
    _, var = statistics(x)
    assert float((var / x.double().var((2, 3), correction=0) - 1).abs().max()) <= 1e-5


@on_devices
@pytest.mark.parametrize("value", (0.0, 1.0, -1234.567, 3e4))
def test_constant_image(value, device):
    x = torch.full((2, 9, 11, 5), value, device=device).permute(0, 3, 1, 2).requires_grad_()
    y = instance_norm(x, act="relu", pad=1, impl="triton")
    assert not y.any()
    dx = torch.autograd.grad(instance_norm(x, impl="triton"), x, torch.ones_like(x))[0]
    assert not dx.any()


@on_devices
@pytest.mark.parametrize("place", ((0, 0), (8, 3), (30, 29)))
def test_one_huge_outlier(place, device):
    x = image((2, 4, 31, 30), torch.float32, device)
    x[:, :, *place] = 1e6
    _, var = statistics(x)
    true = x.double().var((2, 3), correction=0)
    assert float((var / true - 1).abs().max()) <= 1e-5


@on_devices
def test_nan_stays_where_it_is(device):
    x = image((2, 4, 6, 6), torch.float32, device)
    x[0, 1, 2, 3] = float("nan")
    y = instance_norm(x, act="relu", pad=1, impl="triton")
    assert y[0, 1].isnan().all()
    y[0, 1] = 0
    assert y.isfinite().all()


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


UNSUPPORTED = [
    (lambda x: instance_norm(x, impl="fast"), ValueError, "impl='fast'"),
    (lambda x: instance_norm(x, act="gelu"), ValueError, "act='gelu'"),
    (lambda x: instance_norm(x, residual_relu=True), ValueError, "without a residual"),
    (lambda x: instance_norm(x, act="relu", residual=x), ValueError, "with a residual"),
    (lambda x: instance_norm(x, residual=x[:1]), ValueError, "residual is"),
    (lambda x: instance_norm(x, pad=4), ValueError, "more than 4 pixels"),
    (lambda x: instance_norm(x, pad=-1), ValueError, "negative"),
    (lambda x: instance_norm_pad(x, pad=0), ValueError, "pad=0"),
]
UNSUPPORTED_BY_KERNELS = [
    (lambda x: instance_norm(x[0], impl="triton"), ValueError, r"not \(N, C, H, W\)"),
    (lambda x: instance_norm(x.contiguous(), impl="triton"), ValueError, 'impl="ref"'),
    (lambda x: instance_norm(x.int(), impl="triton"), TypeError, 'impl="ref"'),
    (lambda x: instance_norm(x, residual=x.half(), impl="triton"), TypeError, 'impl="ref"'),
    (lambda x: instance_norm(x, x[0, :2, 0, 0], impl="triton"), ValueError, "weight must be"),
]


@pytest.mark.parametrize(("call", "error", "says"), UNSUPPORTED)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call(image((2, 3, 4, 5), torch.float32, "cpu"))


@on_devices
@pytest.mark.parametrize(("call", "error", "says"), UNSUPPORTED + UNSUPPORTED_BY_KERNELS)
def test_kernels_refuse_bad_input(call, error, says, device):
    with pytest.raises(error, match=says):
        call(image((2, 3, 4, 5), torch.float32, device))


def test_kernels_refuse_a_cpu_tensor(monkeypatch):
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    with pytest.raises(ValueError, match=r'impl="ref".*TRITON_INTERPRET'):
        instance_norm(torch.zeros(1, 2, 3, 3), impl="triton")


def test_kernels_need_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "triton", None)
    with pytest.raises(RuntimeError, match='impl="ref"'):
        instance_norm(torch.zeros(1, 2, 3, 3), impl="triton")
    assert instance_norm(torch.zeros(1, 2, 3, 3)).shape == (1, 2, 3, 3)


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) > 150
