"""What every op is held to, written once; the ops are the rows of tests/op_specs.py.

Tests with a ``device`` run the kernels: on a GPU, or in a process of their own under Triton's
interpreter, which ``test_under_interpreter`` starts. That each check catches what it is there for
is tested in tests/test_numerics.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import numerics
from fastcyclegan.kernels import dispatch, norm_config, sync_batch_norm
from numerics import DTYPES, LAYOUTS, Fences, image, in_layout, on_devices
from op_runs import Calls, assert_right, assert_same, cotangents, leaves, run
from op_specs import OPS, Op

DIFFERENTIABLE = [op for op in OPS if op.differentiable]


def takes_images(op: Op) -> bool:
    tensors, _ = op.case(op.main[0], op.shapes[0], torch.float32, "cpu")
    return any(t.dim() == 4 for t in tensors.values())


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One process, which tells nobody: NCCL or gloo would have to be there."""
    monkeypatch.setattr(sync_batch_norm, "of_all", lambda row: row[None])
    monkeypatch.setattr(sync_batch_norm, "sum_of_all", torch.clone)


def by_op(ops=OPS):
    return pytest.mark.parametrize("op", ops, ids=lambda op: op.name)


def by_variant(ops=OPS, only=lambda op: op.variants):
    pairs = [pytest.param(op, v, id=f"{op.name}, {v}") for op in ops for v in only(op)]
    return pytest.mark.parametrize(("op", "variant"), pairs)


norms = by_op([op for op in OPS if op.norm])


def main_variants(ops=OPS):
    return by_variant(ops, lambda op: op.main)


@on_devices
@by_variant()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_reference_in_fp64(op, variant, dtype, device):
    shapes = op.shapes_of(variant)
    # There, a shape takes the same code in every dtype.
    few = dispatch.interpreted() and dtype != torch.float32
    for shape in shapes[:1] if few else shapes:
        assert_right(op, *op.case(variant, shape, dtype, device), what=str(shape))


@on_devices
@by_op()
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_matches_the_reference_at_the_shapes_of_the_nets(op, dtype, device):
    for variant, (n, c, h, w) in op.nets:
        small = (min(n, 4), min(c, 64), -(-h // 8), -(-w // 2))
        shape = small if dispatch.interpreted() else (n, c, h, w)
        assert_right(op, *op.case(variant, shape, dtype, device), what=f"{variant}, {shape}")


@by_variant()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_matches_numpy(op, variant, layout):
    """With every layout of the gradient, also of one image: PyTorch has been wrong there."""
    n, *rest = op.shapes_of(variant)[0]
    for images in (n, 1):
        tensors, options = op.case(variant, (images, *rest), torch.float64, "cpu")
        results = run(op, tensors, options, impl="ref")
        dys = [in_layout(dy, layout) for dy in cotangents(op, results)]
        found = run(op, tensors, options, dys, "ref")
        arrays = {name: t.numpy() for name, t in tensors.items()}
        truth = op.oracle(arrays, options, [dy.numpy() for dy in dys])
        for name, t in found.items():
            what = f"{name} of {images}"
            np.testing.assert_allclose(t, truth[name], rtol=0, atol=1e-12, err_msg=what)


@on_devices
@by_variant(DIFFERENTIABLE)
def test_gradients_are_those_of_finite_differences(op, variant, device):
    shape = op.fitted(variant, (1, 2, 4, 5))
    tensors, options = op.case(variant, shape, torch.float64, device)
    names = list(leaves(op, tensors))

    def function(*values):
        given = {name: t.clone() if name in op.mutated else t for name, t in tensors.items()}
        return op.public(**given | dict(zip(names, values, strict=True)), **options, impl="triton")

    inputs = [tensors[name].requires_grad_() for name in names]
    # Its own tolerance is for sums that do not cancel: a norm's do, and 1 % more would pass.
    assert torch.autograd.gradcheck(function, inputs, atol=1e-8, rtol=1e-5, fast_mode=True)


@on_devices
@main_variants()
def test_opcheck(op, variant, device):
    """Schema, autograd registration, fakes and tracing of every custom op that a call uses."""
    with Calls() as calls:
        run(op, *op.case(variant, op.shapes[0], torch.float32, device))
    assert calls.found
    assert op.differentiable == any(f.name().endswith("_bwd") for f, _ in calls.found)
    for function, args in calls.found:
        torch.library.opcheck(function, args)


@on_devices
@main_variants()
def test_compiled_equals_eager(op, variant, device):
    """In one graph, values and gradients."""
    # Inductor would compile C++ for each of them.
    backend = "inductor" if device == "cuda" else "aot_eager"
    torch._dynamo.reset()
    tensors, options = op.case(variant, op.shapes[0], torch.float32, device)
    expected = run(op, tensors, options)
    compiled = torch.compile(op.public, fullgraph=True, dynamic=False, backend=backend)
    found = run(dataclasses.replace(op, public=compiled), tensors, options)
    if len(op.outputs) == 1:
        assert_same(found, expected)
    for name, t in expected.items():
        # Outputs that share memory are handed out as one, and their gradients added up outside.
        torch.testing.assert_close(found[name], t, rtol=1e-5, atol=1e-6 * float(t.abs().max()))


@on_devices
@main_variants(DIFFERENTIABLE)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_gradient_in_every_layout(op, variant, layout, device):
    tensors, options = op.case(variant, op.shapes[0], torch.float32, device)
    dys = [in_layout(dy, layout) for dy in cotangents(op, run(op, tensors, options))]
    same = [dy.contiguous(memory_format=torch.channels_last) for dy in dys]
    assert_same(run(op, tensors, options, dys), run(op, tensors, options, same))


@on_devices
@main_variants([op for op in OPS if takes_images(op)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_in_every_layout(op, variant, layout, device):
    """Taken as it is, or refused where the op needs channels_last."""
    tensors, options = op.case(variant, op.shapes[0], torch.float32, device)
    for name in [name for name, t in tensors.items() if t.dim() == 4]:
        given = in_layout(tensors[name], layout)
        if layout == "channels_last" or name in op.any_layout:
            same = given.contiguous(memory_format=torch.channels_last)
            expected = run(op, tensors | {name: same}, options)
            assert_same(run(op, tensors | {name: given}, options), expected)
        else:
            with pytest.raises(ValueError, match=r'not channels_last.*impl="ref"'):
                run(op, tensors | {name: given}, options)


@on_devices
@main_variants()
def test_results_are_channels_last_and_the_same_twice(op, variant, device):
    case = op.case(variant, (1, 24, 15, 13), torch.float32, device)
    once, again = run(op, *case), run(op, *case)
    assert_same(again, once)
    for name, t in once.items():
        skip = name in op.outputs[1:]
        if t.dim() == 4 and not skip:
            assert t.is_contiguous(memory_format=torch.channels_last), name
        assert t.dim() < 4 or t.stride(1) == 1, name


@on_devices
@by_variant()
def test_reads_and_writes_no_other_memory(op, variant, device):
    shape = op.shapes_of(variant)[:2][-1]
    tensors, options = op.case(variant, shape, torch.float32, device)
    fences = Fences()
    dys = [fences.around(dy) for dy in cotangents(op, run(op, tensors, options, impl="ref"))]
    # Before the other one, which a wrong address may end.
    with fences.allocations():
        found = run(op, tensors, options, dys, place=fences.around)
    fences.check()
    assert_same(found, run(op, tensors, options, dys))


@on_devices
@by_variant()
def test_empty_batch(op, variant, device):
    shape = (0, *op.shapes_of(variant)[0][1:])
    case = op.case(variant, shape, torch.float32, device)
    found, expected = run(op, *case), run(op, *case, impl="ref")
    for name, t in expected.items():
        assert found[name].shape == t.shape, name
        if name in op.mutated:
            assert torch.equal(found[name], t), name
        else:
            assert not found[name].any(), name


@on_devices
@norms
@pytest.mark.parametrize("ratio", (0, 1, 10, 100, 1000))
@pytest.mark.parametrize("size", ((16, 16), (47, 43)))
def test_variance_of_data_far_from_zero(op, ratio, size, device):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *size, 8)) + ratio)
    x = x.to(device=device, dtype=torch.float32).permute(0, 3, 1, 2)
    mean, var = op.norm.statistics(x)
    true_var, true_mean = torch.var_mean(x.double(), op.norm.axes, correction=0)
    assert float((var / true_var - 1).abs().max()) <= 1e-5
    assert float((mean - true_mean).abs().max()) <= 2e-7 * max(ratio, 1)


@on_devices
@norms
@pytest.mark.parametrize("part", (1, 2))
@pytest.mark.parametrize("top", (-10, 1000))
def test_variance_where_the_top_is_unlike_the_rest(op, top, part, device, monkeypatch):
    """In whatever order the partial results of runs are combined, however many, about whatever.

    ``part``: how much of the image the top is, in runs.
    """
    monkeypatch.setattr(norm_config, "PROGRAMS", 512)
    config = op.norm.config(4, 4)
    run = config.min_blocks * config.block_p
    assert norm_config.split(config.max_runs * run, 1, config) == (config.max_runs, run)
    x = np.random.default_rng(0).normal(size=(1, config.max_runs, run, 4))
    x.reshape(-1, 4)[: int(part * run)] += top
    x = torch.from_numpy(x).to(device=device, dtype=torch.float32).permute(0, 3, 1, 2)
    _, var = op.norm.statistics(x)
    assert float((var / x.double().var(op.norm.axes, correction=0) - 1).abs().max()) <= 1e-5


@on_devices
@norms
@pytest.mark.parametrize("place", ((0, 0), (8, 3), (30, 29)))
def test_variance_with_one_huge_outlier(op, place, device):
    x = image((2, 4, 31, 30), torch.float32, device)
    x[:, :, *place] = 1e6
    _, var = op.norm.statistics(x)
    true = x.double().var(op.norm.axes, correction=0)
    assert float((var / true - 1).abs().max()) <= 1e-5


@on_devices
@norms
@pytest.mark.parametrize("value", (0.0, 1.0, -1234.567, 3e4))
def test_constant_image(op, value, device):
    """Exactly zero, and a constant gradient leaves nothing."""
    tensors, options = op.case(next(iter(op.variants)), (2, 5, 9, 11), torch.float32, device)
    tensors["x"].fill_(value)
    found = run(op, tensors, options, [torch.ones_like(tensors["x"])])
    bias = tensors.get("bias", torch.zeros(5, device=device))
    assert torch.equal(found["y"], bias[:, None, None].expand(found["y"].shape))
    assert not found["dx"].any()


@on_devices
@norms
def test_nan_stays_where_it_is(op, device):
    tensors, options = op.case("relu", (2, 4, 6, 6), torch.float32, device)
    tensors["x"][0, 1, 2, 3] = float("nan")
    found = run(op, tensors, options)["y"].isnan()
    expected = torch.zeros_like(found)
    expected[slice(None) if 0 in op.norm.axes else 0, 1] = True
    assert torch.equal(found, expected)


def changes(op: Op, tensors: dict) -> list:
    """Calls that no kernel takes: of another type, of another shape."""
    name, t = next(iter(tensors.items()))
    return [
        (lambda _: {name: t.to(torch.int16)}, TypeError, f'{name} is torch.int16.*impl="ref"'),
        (lambda _: {name: t[0]}, ValueError, name),
        *op.bad,
        *op.unsupported,
    ]


def assert_refused(op: Op, device: str) -> None:
    tensors, options = op.case(next(iter(op.variants)), op.shapes[0], torch.float32, device)
    for change, error, words in changes(op, tensors):
        call = {**tensors, **options, **change(tensors)}
        with pytest.raises(error, match=words) as refusal:
            op.public(**call, impl="triton")
        try:
            op.public(**call, impl="ref")
        except (ValueError, TypeError, RuntimeError, IndexError):
            continue
        assert 'impl="ref"' in str(refusal.value), refusal.value


@on_devices
@by_op()
def test_kernels_refuse_what_they_do_not_support(op, device):
    assert_refused(op, device)


@by_op()
def test_reference_refuses_bad_input(op):
    tensors, options = op.case(next(iter(op.variants)), op.shapes[0], torch.float32, "cpu")
    for change, error, words in op.bad:
        with pytest.raises(error, match=words):
            op.public(**{**tensors, **options, **change(tensors)}, impl="ref")
    with pytest.raises(ValueError, match="impl='fast'"):
        op.public(**tensors, **options, impl="fast")


@by_op()
def test_kernels_need_a_gpu_and_triton(op, monkeypatch):
    tensors, options = op.case(next(iter(op.variants)), op.shapes[0], torch.float32, "cpu")
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    with pytest.raises(ValueError, match=r'impl="ref".*TRITON_INTERPRET'):
        op.public(**tensors, **options, impl="triton")
    monkeypatch.setattr(dispatch, "triton", None)
    with pytest.raises(RuntimeError, match='impl="ref"'):
        op.public(**tensors, **options, impl="triton")
    assert_same(run(op, tensors, options, impl=None), run(op, tensors, options, impl="ref"))


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) > 500
