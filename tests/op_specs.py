"""The ops that tests/test_op_contract.py proves: one row each, in OPS.

A row names the public function, the formula in NumPy that its reference is held to, and what to
call it with. What the checks do with that is the same for every op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import oracles
from fastcyclegan.kernels.instance_norm import (
    _instance_norm_fwd,
    instance_norm,
    instance_norm_pad,
)
from fastcyclegan.kernels.reflection_pad import reflection_pad
from numerics import image

Tensors = dict[str, torch.Tensor]
Shape = tuple[int, ...]
# For a call that must be refused: tensors and options instead of valid ones, the error, its words.
Refused = tuple[Callable[[Tensors], dict[str, Any]], type[Exception], str]


@dataclass(frozen=True, eq=False)
class Norm:
    """What is normalised: pixels over ``axes``; ``statistics`` gives (mean, variance) of x."""

    axes: tuple[int, ...]
    statistics: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Op:
    """One op.

    Attributes:
        public: called as ``public(**tensors, **options, impl=...)``.
        oracle: called as ``oracle(arrays, options, dys)``, everything in fp64; results by name:
            outputs, gradients (``dx`` of ``x``) and inputs after a change in place. It may give
            more than there is. ``dys`` is empty for an op that is not differentiable.
        variants: options by name; ``make`` takes them apart.
        shapes: odd ones, for every variant that fits; the first is for the checks that take long.
        nets: pairs (variant, shape) as the networks have them.
        main: the variants for opcheck and compilation.
        make: from (variant, shape, dtype, device) the tensors and the options of a valid call.
        outputs: names of what ``public`` returns.
        differentiable: whether the floating inputs that are not in ``mutated`` have gradients.
        mutated: inputs that are changed in place.
        any_layout: 4-D inputs that need not be channels_last.
        exact: results that have the reference's bits.
        bad: calls that the kernels and the reference refuse, in the same words.
        unsupported: calls that the kernels refuse; if the reference takes one, they say so.
    """

    name: str
    public: Callable[..., Any]
    oracle: Callable[[dict, dict, list[np.ndarray]], dict[str, np.ndarray]]
    variants: dict[str, dict[str, Any]]
    shapes: tuple[Shape, ...]
    nets: tuple[tuple[str, Shape], ...]
    main: tuple[str, ...]
    make: Callable[..., tuple[Tensors, dict[str, Any]]]
    outputs: tuple[str, ...] = ("y",)
    differentiable: bool = True
    mutated: tuple[str, ...] = ()
    any_layout: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    norm: Norm | None = None
    bad: Sequence[Refused] = field(default_factory=list)
    unsupported: Sequence[Refused] = field(default_factory=list)

    def case(
        self, variant: str, shape: Shape, dtype: torch.dtype, device: str
    ) -> tuple[Tensors, dict[str, Any]]:
        """Tensors and options of a valid call."""
        return self.make(dict(self.variants[variant]), shape, dtype, device)

    def shapes_of(self, variant: str) -> list[Shape]:
        """The shapes that a variant can have: a reflection needs more pixels than its width."""
        pad = self.variants[variant].get("pad", 0)
        return [shape for shape in self.shapes if pad < min(shape[2:])]


def make_norm(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    """x, and weight, bias and residual where the variant has True in their place."""
    tensors = {"x": image(shape, dtype, device)}
    for seed, name in enumerate(("weight", "bias"), 1):
        if options.pop(name, False):
            draw = np.random.default_rng(seed).normal(size=shape[1]) + 1
            tensors[name] = torch.from_numpy(draw).to(device=device, dtype=dtype)
    if options.pop("residual", False):
        tensors["residual"] = image(shape, dtype, device, seed=3)
    return tensors, options


def make_pad(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    return {"x": image(shape, dtype, device)}, options


def instance_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _, mean, rstd = _instance_norm_fwd(x, None, None, None, "none", 0.2, False, 0, 1e-12)
    return mean.double(), rstd.double() ** -2 - 1e-12


SHAPES = ((2, 5, 6, 7), (2, 3, 9, 7), (1, 63, 17, 13), (1, 130, 4, 5), (3, 1, 4, 6), (1, 5, 4, 4))
AFFINE = {"weight": True, "bias": True}
SUM = {"residual": True, "residual_relu": True}
TRUNK, IMAGES, DISCRIMINATOR = (1, 256, 64, 64), (1, 64, 256, 256), (2, 512, 31, 31)

NORM_REFUSED = (
    (lambda t: {"act": "gelu"}, ValueError, "act='gelu'"),
    (lambda t: {"residual_relu": True}, ValueError, "without a residual"),
    (lambda t: {"act": "relu", "residual": t["x"]}, ValueError, "with a residual"),
    (lambda t: {"act": "none", "residual": t["x"][:1]}, ValueError, "residual is"),
    (lambda t: {"pad": 6}, ValueError, "more than 6 pixels, got 6 x 7"),
    (lambda t: {"pad": -1}, ValueError, "pad=-1"),
)
NORM_UNSUPPORTED = (
    (
        lambda t: {"act": "none", "residual": t["x"].half()},
        TypeError,
        "residual is torch.float16",
    ),
    (lambda t: {"weight": t["x"][0, :2, 0, 0]}, ValueError, "weight must be"),
)

INSTANCE_NORM = Op(
    name="instance_norm",
    public=instance_norm,
    oracle=oracles.instance_norm,
    variants={
        "plain": {},
        "relu": {"act": "relu"},
        "leaky_relu": {"act": "leaky_relu", "slope": 0.2},
        "relu pad 1": {"act": "relu", "pad": 1},
        "leaky_relu pad 3": {"act": "leaky_relu", "slope": 0.1, "pad": 3},
        "affine": AFFINE,
        "weight relu pad 1": {"weight": True, "act": "relu", "pad": 1},
        "residual": {"residual": True},
        "residual pad 1": {"residual": True, "pad": 1},
        "residual relu pad 2": SUM | {"pad": 2},
        "affine residual relu": AFFINE | SUM,
    },
    shapes=SHAPES,
    nets=(
        ("relu pad 1", TRUNK),
        ("residual pad 1", TRUNK),
        ("relu", IMAGES),
        ("leaky_relu", DISCRIMINATOR),
    ),
    main=("plain", "weight relu pad 1", "affine residual relu"),
    make=make_norm,
    any_layout=("residual",),
    norm=Norm((2, 3), instance_statistics),
    bad=NORM_REFUSED,
    unsupported=NORM_UNSUPPORTED,
)

INSTANCE_NORM_PAD = Op(
    name="instance_norm_pad",
    public=instance_norm_pad,
    oracle=oracles.instance_norm,
    variants={
        "relu pad 1": {"act": "relu", "pad": 1},
        "residual pad 1": {"residual": True, "pad": 1},
        "residual relu pad 2": SUM | {"pad": 2},
    },
    shapes=SHAPES,
    nets=(("residual pad 1", TRUNK),),
    main=("residual pad 1",),
    make=make_norm,
    outputs=("y", "skip"),
    any_layout=("residual",),
    bad=(*NORM_REFUSED[:-1], (lambda t: {"pad": 0}, ValueError, "pad=0")),
    unsupported=NORM_UNSUPPORTED,
)

REFLECTION_PAD = Op(
    name="reflection_pad",
    public=reflection_pad,
    oracle=oracles.reflection_pad,
    variants={f"pad {pad}": {"pad": pad} for pad in (3, 0, 1)},
    shapes=(*SHAPES, (1, 5, 2, 2), (2, 64, 5, 33)),
    nets=(("pad 3", (1, 3, 256, 256)), ("pad 1", TRUNK)),
    main=("pad 3",),
    make=make_pad,
    any_layout=("x",),
    exact=("y",),
    bad=(
        (lambda t: {"pad": 6}, ValueError, "more than 6 pixels, got 6 x 7"),
        (lambda t: {"pad": -1}, ValueError, "pad=-1"),
    ),
)

OPS = (INSTANCE_NORM, INSTANCE_NORM_PAD, REFLECTION_PAD)
