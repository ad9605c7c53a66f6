"""The ops that tests/test_op_contract.py proves: one row each, in OPS.

A row names the public function, the formula in NumPy that its reference is held to, and what to
call it with. What the checks do with that is the same for every op.
"""

from __future__ import annotations

import torch

import oracles
from fastcyclegan.kernels.augment import augment
from fastcyclegan.kernels.batch_norm import _batch_norm_stats, batch_norm
from fastcyclegan.kernels.image_pool import image_pool, undo_image_pool
from fastcyclegan.kernels.instance_norm import (
    _instance_norm_fwd,
    instance_norm,
    instance_norm_pad,
)
from fastcyclegan.kernels.norm_config import batch_config, reduce_config
from fastcyclegan.kernels.reflection_pad import reflection_pad
from fastcyclegan.kernels.sync_batch_norm import _statistics, combine, sync_batch_norm
from fastcyclegan.kernels.windows import draw_windows
from op_inputs import (
    make_augment,
    make_batch_norm,
    make_norm,
    make_pad,
    make_pool,
    make_undo,
    make_windows,
)
from op_row import Norm, Op


def instance_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _, mean, rstd = _instance_norm_fwd(x, None, None, None, "none", 0.2, False, 0, 1e-12)
    return mean.double(), rstd.double() ** -2 - 1e-12


def batch_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, rstd = _batch_norm_stats(x, None, None, 0.1, 1e-12)
    return mean.double(), rstd.double() ** -2 - 1e-12


def shared_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, m2, number = combine(_statistics(x, True)[None])
    return mean.double(), m2.double() / number


SHAPES = ((2, 5, 6, 7), (2, 3, 9, 7), (1, 63, 17, 13), (1, 130, 4, 5), (3, 1, 4, 6), (1, 5, 4, 4))
AFFINE = {"weight": True, "bias": True}
SUM = {"residual": True, "residual_relu": True}
TRUNK, IMAGES, DISCRIMINATOR = (1, 256, 64, 64), (1, 64, 256, 256), (2, 512, 31, 31)

NORM_REFUSED = (
    (lambda t: {"act": "gelu"}, ValueError, "act='gelu'"),
    (lambda t: {"residual_relu": True}, ValueError, "without a residual"),
    (lambda t: {"act": "relu", "residual": t["x"]}, ValueError, "with a residual"),
    (
        lambda t: {"act": "none", "residual": t["x"][:1]},
        ValueError,
        "residual is .*: give one of its shape",
    ),
    (lambda t: {"pad": 6}, ValueError, "more than 6 pixels, got 6 x 7"),
    (lambda t: {"pad": -1}, ValueError, "pad=-1"),
)
PARAMETERS_UNSUPPORTED = (
    (lambda t: {"weight": t["x"][0, :2, 0, 0]}, ValueError, "weight must be .*one value per"),
    (
        lambda t: {"weight": t["x"].new_ones(2 * t["x"].shape[1])[::2]},
        ValueError,
        r'weight must be contiguous.* use \.contiguous\(\), or impl="ref"',
    ),
)
NORM_UNSUPPORTED = (
    *PARAMETERS_UNSUPPORTED,
    (
        lambda t: {"act": "none", "residual": t["x"].half()},
        TypeError,
        "residual is torch.float16",
    ),
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
        "weight relu pad 1": {"weight": "as x", "act": "relu", "pad": 1},
        "residual": {"residual": True},
        "residual pad 1": {"residual": True, "pad": 1},
        "residual relu pad 2": SUM | {"pad": 2},
        "affine relu pad 1": AFFINE | {"act": "relu", "pad": 1},
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
    norm=Norm((2, 3), instance_statistics, reduce_config),
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

# With one channel, its sum is the whole tensor: it must not cancel, or rounding is all of it.
BATCH_SHAPES = (*SHAPES[:4], (2, 1, 5, 7), (7, 5, 1, 1), (1, 3, 2, 1))
BATCH_REFUSED = (
    (lambda t: {"act": "gelu"}, ValueError, "act='gelu'"),
    (lambda t: {"running_mean": t["x"][0, :, 0, 0]}, ValueError, "give both"),
    (lambda t: {"x": t["x"][:1, :, :1, :1]}, ValueError, "one value per channel"),
    (
        lambda t: dict.fromkeys(("running_mean", "running_var"), t["x"][0, :, 0, 0].half()),
        TypeError,
        "running_mean is torch.float16",
    ),
)
TRAINING, EVAL = {"training": True}, {"training": False}
BATCH_NORM = Op(
    name="batch_norm",
    public=batch_norm,
    oracle=oracles.batch_norm,
    variants={
        "plain": TRAINING | {"running": False},
        "relu": TRAINING | AFFINE | {"act": "relu"},
        "leaky_relu": TRAINING | AFFINE | {"act": "leaky_relu", "slope": 0.1, "momentum": 0.3},
        "weight": TRAINING | {"weight": True},
        "eval": EVAL,
        "eval relu": EVAL | AFFINE | {"act": "relu"},
    },
    shapes=BATCH_SHAPES,
    # DCGAN's generator and discriminator, and a PatchGAN.
    nets=(
        ("relu", (64, 512, 4, 4)),
        ("relu", (64, 64, 32, 32)),
        ("leaky_relu", (64, 128, 16, 16)),
        ("leaky_relu", DISCRIMINATOR),
    ),
    main=("relu", "eval relu"),
    make=make_batch_norm,
    mutated=("running_mean", "running_var"),
    norm=Norm((0, 2, 3), batch_statistics, batch_config),
    bad=(
        *BATCH_REFUSED,
        (lambda t: {"training": False}, ValueError, "training=False needs"),
    ),
    unsupported=PARAMETERS_UNSUPPORTED,
)

# As one process of one: what it is told is what it says.
SYNC_BATCH_NORM = Op(
    name="sync_batch_norm",
    public=sync_batch_norm,
    oracle=oracles.batch_norm,
    variants={
        "plain": {"running": False},
        "relu": AFFINE | {"act": "relu"},
        "leaky_relu": AFFINE | {"act": "leaky_relu", "slope": 0.1, "momentum": 0.3},
        "weight": {"weight": True},
    },
    shapes=BATCH_SHAPES,
    nets=(("relu", (64, 64, 32, 32)), ("leaky_relu", DISCRIMINATOR)),
    main=("relu",),
    make=make_batch_norm,
    mutated=("running_mean", "running_var"),
    norm=Norm((0, 2, 3), shared_statistics, batch_config),
    bad=BATCH_REFUSED,
    unsupported=PARAMETERS_UNSUPPORTED,
)

REFLECTION_PAD = Op(
    name="reflection_pad",
    public=reflection_pad,
    oracle=oracles.reflection_pad,
    variants={f"pad {pad}": {"pad": pad} for pad in (3, 0, 1, 4, 40)},
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


POOL_SHAPES = ((5, 3, 6, 7), (4, 5, 9, 7), (1, 63, 17, 13), (7, 1, 1, 1))
POOL_UNSUPPORTED = (
    (lambda t: {"pool": t["pool"].half()}, TypeError, "pool torch.float16"),
    (lambda t: {"pool": t["pool"][:, :1]}, ValueError, "pool is"),
    (lambda t: {"pool": t["pool"][:0]}, ValueError, "K >= 1"),
    (lambda t: {"number": t["number"][:2]}, ValueError, r"number must be.*shape \(5,\)"),
    (lambda t: {"number": t["number"].int()}, ValueError, "number must be torch.int64"),
    (lambda t: {"seed": t["number"]}, ValueError, r"seed must be.*shape \(\)"),
    (lambda t: {"count": t["count"].int()}, ValueError, "count must be torch.int64"),
)

IMAGE_POOL = Op(
    name="image_pool",
    public=image_pool,
    oracle=oracles.image_pool,
    variants={
        "full": {"capacity": 2, "stored": 2},
        "filling": {"capacity": 50, "stored": 0},
        "becoming full": {"capacity": 3, "stored": 1},
        "one": {"capacity": 1, "stored": 0},
    },
    shapes=POOL_SHAPES,
    nets=(("full", (1, 3, 256, 256)), ("filling", (2, 3, 256, 256))),
    main=("full", "becoming full"),
    make=make_pool,
    differentiable=False,
    mutated=("pool", "count"),
    exact=("y", "pool", "count"),
    unsupported=POOL_UNSUPPORTED,
)

UNDO_IMAGE_POOL = Op(
    name="undo_image_pool",
    public=undo_image_pool,
    oracle=oracles.undo_image_pool,
    variants={
        "full": {"capacity": 2, "stored": 2, "shut": True},
        "becoming full": {"capacity": 3, "stored": 1, "shut": True},
        "kept": {"capacity": 3, "stored": 1, "shut": False},
    },
    shapes=POOL_SHAPES,
    nets=(("full", (1, 3, 256, 256)),),
    main=("full",),
    make=make_undo,
    outputs=(),
    differentiable=False,
    mutated=("pool", "count"),
    exact=("pool", "count"),
    unsupported=(
        *POOL_UNSUPPORTED,
        (lambda t: {"shut": t["shut"].int()}, ValueError, "shut must be torch.bool"),
    ),
)

AUGMENT = Op(
    name="augment",
    public=augment,
    oracle=oracles.augment,
    variants={
        "tanh": {},
        "tanh pad 3": {"pad": 3},
        "flips as bool": {"bool": True},
        "0 to 255": {"zero": 0.0, "scale": 1.0},
        "0 to 255 pad 1": {"zero": 0.0, "scale": 1.0, "pad": 1},
    },
    shapes=((3, 3, 6, 7), (2, 3, 9, 7), (1, 63, 17, 13), (3, 1, 4, 6), (2, 4, 33, 31)),
    nets=(("tanh", (1, 3, 256, 256)), ("tanh pad 3", (2, 3, 256, 256))),
    main=("tanh", "tanh pad 3"),
    make=make_augment,
    differentiable=False,
    exact=("y",),
    bad=(
        (lambda t: {"pad": 6}, ValueError, "more than 6 pixels, got 6 x 7"),
        (lambda t: {"pad": -1}, ValueError, "pad=-1"),
    ),
    unsupported=(
        (lambda t: {"dtype": torch.int32}, TypeError, "dtype=torch.int32"),
        (lambda t: {"pixels": t["pixels"].T}, ValueError, "pixels must be"),
        (lambda t: {"top": t["top"].int()}, ValueError, "top must be int64"),
        (lambda t: {"flip": t["flip"][:2]}, ValueError, "flip must be int64 or bool"),
    ),
)

DRAW_WINDOWS = Op(
    name="draw_windows",
    public=draw_windows,
    oracle=oracles.draw_windows,
    variants={
        "epochs": {"order": True, "flip": True},
        "drawn": {"order": False, "flip": True},
        "no flip": {"order": False, "flip": False},
        "whole": {"order": True, "flip": True, "whole": True},
    },
    shapes=((5, 3, 6, 7), (1, 1, 9, 7), (7, 2, 4, 6), (130, 3, 5, 8)),
    nets=(("epochs", (1, 100, 256, 256)), ("drawn", (8, 100, 256, 256))),
    main=("epochs", "drawn"),
    make=make_windows,
    differentiable=False,
    exact=("y",),
    unsupported=(
        (lambda t: {"table": t["table"][:2]}, ValueError, "table is"),
        (lambda t: {"table": t["table"].T}, ValueError, "table must"),
        (lambda t: {"seed": t["number"]}, ValueError, "seed must have 0 dimensions"),
        (lambda t: {"order": t["order"].int()}, TypeError, "order is torch.int32"),
    ),
)

OPS = (
    INSTANCE_NORM,
    INSTANCE_NORM_PAD,
    BATCH_NORM,
    SYNC_BATCH_NORM,
    REFLECTION_PAD,
    IMAGE_POOL,
    UNDO_IMAGE_POOL,
    AUGMENT,
    DRAW_WINDOWS,
)
