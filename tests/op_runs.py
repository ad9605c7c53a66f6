"""Calling an op of tests/op_specs.py: its results by name, and what they must be."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.kernels import dispatch
from numerics import assert_close, image
from op_specs import Op


def leaves(op: Op, tensors: dict) -> dict:
    """The inputs that have a gradient."""
    if not op.differentiable:
        return {}
    return {n: t for n, t in tensors.items() if t.is_floating_point() and n not in op.mutated}


def cotangents(op: Op, results: dict) -> list[torch.Tensor]:
    """A gradient for each output; of an op without gradients, none."""
    outputs = [results[name] for name in op.outputs] if op.differentiable else []
    return [image(y.shape, y.dtype, y.device, seed=4 + i) for i, y in enumerate(outputs)]


def own(t: torch.Tensor) -> torch.Tensor:
    """A copy to change in place; of another layout than these two, which is refused, itself."""
    nhwc = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return t.clone() if nhwc or t.is_contiguous() else t


def run(op: Op, tensors, options, dys=None, impl="triton", place=torch.Tensor.detach) -> dict:
    """Outputs, gradients and inputs changed in place, by name; ``tensors`` stay as they are."""
    given = {n: place(own(t) if n in op.mutated else t) for n, t in tensors.items()}
    inputs = leaves(op, given)
    for t in inputs.values():
        t.requires_grad_()
    outputs = op.public(**given, **options, impl=impl)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)[: len(op.outputs)]
    results = dict(zip(op.outputs, (y.detach() for y in outputs), strict=True))
    if inputs:
        dys = cotangents(op, results) if dys is None else dys
        grads = torch.autograd.grad(outputs, list(inputs.values()), dys)
        results |= {f"d{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return results | {name: given[name] for name in op.mutated if name in given}


def widened(t):
    return t.double() if t.is_floating_point() else t


def wide(tensors: dict, options: dict) -> tuple[dict, dict]:
    """The same call in fp64."""
    options = {k: torch.float64 if isinstance(v, torch.dtype) else v for k, v in options.items()}
    return {name: widened(t) for name, t in tensors.items()}, options


def assert_right(op: Op, tensors: dict, options: dict, what: str = "") -> None:
    """Results as near to the reference in fp64 as twice the reference's own error."""
    actual = run(op, tensors, options)
    dys = cotangents(op, actual)
    truth = run(op, *wide(tensors, options), [dy.double() for dy in dys], "ref")
    peer = run(op, tensors, options, dys, "ref")
    assert actual.keys() == truth.keys()
    for name in truth:
        assert_close(actual[name], widened(truth[name]), peer[name], f"{name} {what}")
        truncated = dispatch.interpreted() and peer[name].dtype == torch.bfloat16
        if name in op.exact and not truncated:
            assert torch.equal(actual[name], peer[name]), f"{name} {what}"


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        assert torch.equal(found[name], t), name


class Calls(TorchDispatchMode):
    """The custom ops of this project that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastcyclegan":
            assert not kwargs
            self.found.append((function, tuple(self.copied(function, a) for a in args)))
        return function(*args, **kwargs or {})

    @staticmethod
    def copied(function, value):
        if not isinstance(value, torch.Tensor):
            return value
        # Backward ops have no backward of their own.
        needed = value.requires_grad and not function.name().endswith("_bwd")
        return value.detach().clone().requires_grad_(needed)
