"""What the ops of tests/op_specs.py are called with: tensors by name, and options."""

from __future__ import annotations

import numpy as np
import torch

from fastcyclegan.kernels.augment import PLAN
from fastcyclegan.kernels.philox import SAMPLE_B
from numerics import image

Shape = tuple[int, ...]


def make_norm(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    """x, and weight, bias and residual where the variant has True in their place.

    Weight and bias are in fp32 at least, as the networks have them, unless it has "as x" there.
    """
    tensors = {"x": image(shape, dtype, device)}
    for seed, name in enumerate(("weight", "bias"), 1):
        if kind := options.pop(name, False):
            draw = np.random.default_rng(seed).normal(size=shape[1]) + 1
            wide = dtype if kind == "as x" else torch.promote_types(dtype, torch.float32)
            tensors[name] = torch.from_numpy(draw).to(device=device, dtype=wide)
    if options.pop("residual", False):
        tensors["residual"] = image(shape, dtype, device, seed=3)
    return tensors, options


def make_batch_norm(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    """As :func:`make_norm`; with ``running`` also statistics. In at least fp32, but for x."""
    wide = torch.promote_types(dtype, torch.float32)
    running = options.pop("running", True)
    tensors, options = make_norm(options, shape, wide, device)
    tensors["x"] = tensors["x"].to(dtype)
    if running:
        draw = np.random.default_rng(7)
        values = {"running_mean": draw.normal(size=shape[1])}
        values["running_var"] = draw.uniform(0.5, 4, shape[1])
        tensors |= {k: torch.from_numpy(v).to(device, wide) for k, v in values.items()}
    return tensors, options


def make_pad(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    return {"x": image(shape, dtype, device)}, options


def make_pool(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    """A batch and a pool of ``capacity`` images with ``stored`` of them."""
    capacity, stored = options.pop("capacity"), options.pop("stored")
    pool = image((capacity, *shape[1:]), dtype, device, seed=1)
    pool[stored:] = 0
    scalars = {"count": torch.tensor(stored), "seed": torch.tensor(7)}
    scalars |= {"number": torch.arange(2**32 - 1, 2**32 - 1 + shape[0])}
    tensors = {"images": image(shape, dtype, device), "pool": pool}
    return tensors | {name: t.to(device) for name, t in scalars.items()}, options | {"stream": 3}


def make_undo(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    """What a query might have left: any images, and the count that follows from it."""
    shut = torch.tensor(options.pop("shut"), device=device)
    tensors, options = make_pool(options, shape, dtype, device)
    before = tensors["count"]
    tensors = {"out": tensors.pop("images"), **tensors, "before": before, "shut": shut}
    tensors["count"] = (before + shape[0]).clamp(max=len(tensors["pool"]))
    return tensors, options


def make_augment(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    """Windows of ``shape`` out of images that are larger, each by another width."""
    n, c, h, w = shape
    draw = np.random.default_rng(0)
    width = w + np.arange(n)
    offset = np.cumsum([0, *width * (h + 4)])
    below = [draw.integers(0, limit) for limit in (np.full(n, 5), np.arange(n) + 1, np.full(n, 2))]
    plan = dict(zip(PLAN, [offset[:-1], width, *below], strict=True))
    tensors = {"pixels": draw.integers(0, 256, (offset[-1], c), dtype=np.uint8), **plan}
    tensors = {name: torch.from_numpy(a).to(device) for name, a in tensors.items()}
    if options.pop("bool", False):
        tensors["flip"] = tensors["flip"].bool()
    return tensors, options | {"size": (h, w), "dtype": dtype}


def make_windows(options: dict, shape: Shape, dtype: torch.dtype, device: str):
    """N places of a batch that begins at the end of an epoch, C images of different sizes."""
    n, images, h, w = shape
    height, width = h + np.arange(images), w + 2 * np.arange(images)
    offset = np.cumsum([0, *height * width])[:-1]
    draw, length = np.random.default_rng(0), images + 2
    # beyond 32 bits, so that the upper half of a number counts
    first_epoch = 2**32 // length + 1
    tensors = {
        "number": np.arange(n) + (first_epoch + 1) * length - 1,
        "seed": np.array(7),
        "table": np.stack([offset, height, width]),
        "first_epoch": np.array(first_epoch),
    }
    epochs = [draw.permutation(length) for _ in range(n // length + 2)]
    options = dict(options)
    if options.pop("order"):
        tensors["order"] = np.stack(epochs)
    else:
        options["order"] = None
    size = None if options.pop("whole", False) else (h, w)
    tensors = {name: torch.from_numpy(np.asarray(a)).to(device) for name, a in tensors.items()}
    return tensors, options | {"size": size, "stream": SAMPLE_B}
