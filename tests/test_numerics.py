"""The checks of the ops' tests catch what they are there for.

A ``faulty`` op is right but for one fault: it is its own reference, disturbed on the way in or out.
"""

import dataclasses
import itertools

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

import numerics
import op_runs
import oracles
import test_op_contract as contract
from fastcyclegan.kernels.norm_config import reduce_config
from fastcyclegan.kernels.reflection_pad import pad_ref
from numerics import DTYPES, Fences, image, in_layout, limit
from op_specs import BATCH_NORM, INSTANCE_NORM, REFLECTION_PAD, Norm

SHAPE = (2, 5, 8, 9)
VARIANTS = {INSTANCE_NORM: "leaky_relu", REFLECTION_PAD: "pad 3", BATCH_NORM: "relu"}
CAUGHT = (
    AssertionError,
    pytest.fail.Exception,
    GradcheckError,
    torch._dynamo.exc.Unsupported,
)


class Disturbed(torch.autograd.Function):
    """A tensor as one function changes it; its gradient as another does."""

    @staticmethod
    def forward(ctx, t, forward, backward):
        ctx.change = backward
        return forward(t.view_as(t))

    @staticmethod
    def backward(ctx, g):
        return ctx.change(g), None, None


def same(t):
    return t


def faulty(op, y=same, dy=same, dx=same, x=same):
    """``op`` whose kernels are its reference, but for what the functions given do."""

    def public(impl, **call):
        if impl == "ref":
            return op.public(**call, impl="ref")
        given = Disturbed.apply(call["x"], x, dx)
        return Disturbed.apply(op.public(**call | {"x": given}, impl="ref"), y, dy)

    return dataclasses.replace(op, public=public, shapes=(SHAPE, SHAPE))


def one_element(t, tolerance):
    t = t.clone()
    t[1, 2, 3, 4] += 3 * tolerance
    return t


def dropped_row(t, tolerance):
    t = t.clone()
    t[:, :, 0] = 0
    return t


def swapped_channels(t, tolerance):
    return t[:, [1, 0, 2, 3, 4]]


def one_nan(t, tolerance):
    return one_element(t, float("nan"))


FAULTS = (one_element, dropped_row, swapped_channels, one_nan)


@pytest.fixture(params=VARIANTS.items(), ids=lambda pair: pair[0].name)
def op(request):
    return request.param[0]


@pytest.fixture(params=DTYPES, ids=str)
def case(op, request):
    return op.case(VARIANTS[op], SHAPE, request.param, "cpu")


def test_a_right_result_passes(op, case):
    op_runs.assert_right(faulty(op), *case)


@pytest.mark.parametrize("name", ("y", "dx"))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disturbed_result_is_caught(op, case, name, fault):
    peer = op_runs.run(op, *case, impl="ref")
    dys = [dy.double() for dy in op_runs.cotangents(op, peer)]
    truth = op_runs.run(op, *op_runs.wide(*case), dys, "ref")
    tolerance = limit(truth[name], peer[name])
    wrong = faulty(op, **{name: lambda t: fault(t, tolerance)})
    with pytest.raises(AssertionError, match=name):
        op_runs.assert_right(wrong, *case)


def of_another_dtype(t):
    return t.to(torch.float32 if t.dtype == torch.float64 else torch.float64)


@pytest.mark.parametrize(("variant", "moved"), (("relu", 0), ("eval relu", 1)))
def test_wrong_running_statistics_are_caught(variant, moved):
    """Those that stay in training, and those that move outside."""

    def public(impl, **call):
        if impl == "triton":
            stale = {name: call[name].clone() for name in BATCH_NORM.mutated}
            call["running_mean"] += moved
            call |= stale
        return BATCH_NORM.public(**call, impl="ref")

    wrong = dataclasses.replace(BATCH_NORM, public=public)
    with pytest.raises(AssertionError, match="running_mean"):
        op_runs.assert_right(wrong, *BATCH_NORM.case(variant, SHAPE, torch.float32, "cpu"))


def test_another_dtype_is_caught(op, case):
    with pytest.raises(AssertionError, match="y"):
        op_runs.assert_right(faulty(op, y=of_another_dtype), *case)


def beyond(t):
    """The element behind ``t`` in memory, none where nothing is."""
    place = t.storage_offset() + t.numel()
    there = place < t.untyped_storage().nbytes() // t.element_size()
    return t.as_strided((int(there),), (1,), place)


def read_beyond(t):
    return t + beyond(t).sum()


def write_beyond(t):
    t = torch.empty_like(t).copy_(t)
    beyond(t).zero_()
    return t


def write_nan_beyond(t):
    """As one does who read beyond an input."""
    t = torch.empty_like(t).copy_(t)
    beyond(t).fill_(float("nan"))
    return t


def leave_one_unwritten(t):
    result = torch.empty_like(t)
    result.flatten(0, -2)[1:] = t.flatten(0, -2)[1:]
    return result


def wrong_when_compiled(t):
    return t * 1.01 if torch.compiler.is_compiling() else t


def break_the_graph(t):
    torch._dynamo.graph_break()
    return t


def wrong_when_nchw(t):
    return t if t.is_contiguous(memory_format=torch.channels_last) else t * 1.01


def another_each_time():
    count = itertools.count()
    return lambda t: t + next(count)


MEMORY = contract.test_reads_and_writes_no_other_memory
TWICE = contract.test_results_are_channels_last_and_the_same_twice
DISTURBANCES = [
    (MEMORY, {"x": read_beyond}),
    (MEMORY, {"y": write_beyond}),
    (MEMORY, {"y": write_nan_beyond}),
    (MEMORY, {"dx": leave_one_unwritten}),
    (TWICE, {"y": another_each_time()}),
    (TWICE, {"dx": another_each_time()}),
    (TWICE, {"y": torch.Tensor.contiguous}),
    (TWICE, {"dx": torch.Tensor.contiguous}),
    (contract.test_compiled_equals_eager, {"y": wrong_when_compiled}),
    (contract.test_compiled_equals_eager, {"y": break_the_graph}),
    (contract.test_gradients_are_those_of_finite_differences, {"dx": lambda t: t * 1.01}),
    (contract.test_opcheck, {}),
]


@pytest.mark.parametrize(("check", "fault"), DISTURBANCES)
def test_a_fault_is_caught(op, check, fault):
    with pytest.raises(CAUGHT):
        check(faulty(op, **fault), VARIANTS[op], "cpu")


def test_a_gradient_that_depends_on_the_layout_is_caught(op):
    with pytest.raises(AssertionError):
        wrong = faulty(op, dy=wrong_when_nchw)
        contract.test_gradient_in_every_layout(wrong, VARIANTS[op], "nchw", "cpu")


def test_a_layout_taken_in_silence_is_caught():
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        contract.test_input_in_every_layout(faulty(INSTANCE_NORM), "relu", "nchw", "cpu")


def test_a_layout_that_changes_the_values_is_caught():
    with pytest.raises(AssertionError):
        wrong = faulty(REFLECTION_PAD, x=wrong_when_nchw)
        contract.test_input_in_every_layout(wrong, "pad 3", "nchw", "cpu")


def test_unsupported_input_taken_in_silence_is_caught(op):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        contract.test_kernels_refuse_what_they_do_not_support(faulty(op), "cpu")


def test_a_reference_unlike_the_formula_is_caught(op):
    wrong = dataclasses.replace(op, public=lambda impl, **call: 1.001 * op.public(**call))
    for layout in numerics.LAYOUTS:
        with pytest.raises(AssertionError):
            contract.test_reference_matches_numpy(wrong, VARIANTS[op], layout)


def statistics(x):
    """In one pass, as it must not be done."""
    mean = x.mean((2, 3))
    return mean, x.square().mean((2, 3)) - mean.square()


def test_cancelled_variances_are_caught():
    wrong = dataclasses.replace(INSTANCE_NORM, norm=Norm((2, 3), statistics, reduce_config))
    contract.test_variance_of_data_far_from_zero(wrong, 0, (16, 16), "cpu")
    with pytest.raises(AssertionError):
        contract.test_variance_of_data_far_from_zero(wrong, 100, (16, 16), "cpu")
    biased = Norm((2, 3), lambda x: (None, x.var((2, 3))), reduce_config)
    wrong = dataclasses.replace(INSTANCE_NORM, norm=biased)
    with pytest.raises(AssertionError):
        contract.test_variance_with_one_huge_outlier(wrong, (0, 0), "cpu")


@pytest.mark.parametrize("name", ("y", "dx"))
def test_noise_in_a_constant_image_is_caught(name):
    with pytest.raises(AssertionError):
        contract.test_constant_image(
            faulty(INSTANCE_NORM, **{name: lambda t: t + 1e-7}), 1.0, "cpu"
        )


def test_a_nan_that_spreads_or_vanishes_is_caught():
    for change in (torch.nan_to_num, lambda t: t + t.sum()):
        with pytest.raises(AssertionError):
            contract.test_nan_stays_where_it_is(faulty(INSTANCE_NORM, y=change), "cpu")


def test_fences_show_an_access_outside():
    fences = Fences()
    x = fences.around(image(SHAPE, torch.float32, "cpu"))
    assert x.is_contiguous(memory_format=torch.channels_last) and x.isfinite().all()
    fences.check()
    for offset in (-1, x.numel()):
        outside = x.as_strided((1,), (1,), x.storage_offset() + offset)
        assert outside.isnan().all()
        outside.zero_()
        with pytest.raises(AssertionError, match="1 elements"):
            fences.check()
        outside.fill_(float("nan"))


def test_fences_stand_around_what_is_allocated():
    fences = Fences()
    with fences.allocations():
        made = (torch.empty(3), torch.empty_like(torch.ones(3, dtype=torch.uint8)))
        assert made[0].new_empty((2, 2)).isnan().all()
    assert made[0].isnan().all() and (made[1] == 255).all()
    assert len(fences.buffers) == 3
    made[0].as_strided((1,), (1,), Fences.BAND + 3).zero_()
    with pytest.raises(AssertionError):
        fences.check()


@pytest.mark.parametrize("layout", numerics.LAYOUTS)
def test_layouts_keep_the_values(layout):
    x = image(SHAPE, torch.float32, "cpu")
    y = in_layout(x, layout)
    assert torch.equal(y, x[:1, :1, :1, :1].expand(SHAPE) if layout == "expanded" else x)
    strides = {"nchw": (360, 72, 9, 1), "channels_last": (360, 1, 45, 5), "expanded": (0,) * 4}
    assert layout == "sliced" or y.stride() == strides[layout]
    assert layout != "sliced" or not y.is_contiguous(memory_format=torch.channels_last)


def test_fold_is_the_transpose_of_pad():
    x, dy = image(SHAPE, torch.float64, "cpu"), image((2, 5, 14, 15), torch.float64, "cpu", 1)
    padded = torch.from_numpy(oracles.pad(x.numpy(), 3))
    folded = torch.from_numpy(oracles.fold(dy.numpy(), 3))
    torch.testing.assert_close((padded * dy).sum(), (x * folded).sum())
    assert torch.equal(padded, pad_ref(x, 3))
