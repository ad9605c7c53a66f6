"""What ops the networks call, and with what: recorded from a forward and a backward of each.

On tensors without data: nothing is computed, and no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.config import TrainConfig
from fastcyclegan.kernels import augment, image_pool, windows
from fastcyclegan.models import build
from fastcyclegan.presets import PRESETS, apply_preset
from fastcyclegan.steps import assembly, dcgan_assembly

# The networks of the options' defaults first; every block of a trunk is the same, but for the last.
RESNET = {"class": "ResnetGenerator", "n_blocks": 2}
NETWORKS = (
    RESNET,
    {"class": "NLayerDiscriminator"},
    {"class": "UnetGenerator"},
    {"class": "PixelDiscriminator"},
    RESNET | {"dropout": True, "upsample": "resize"},
    RESNET | {"norm": "batch"},
    RESNET | {"residual_relu": True},
    RESNET | {"ngf": 32},
    {"class": "NLayerDiscriminator", "ndf": 32},
    {"class": "NLayerDiscriminator", "norm": "batch"},
    {"class": "UnetGenerator", "norm": "batch"},
    {"class": "JohnsonGenerator"},
    {"class": "JohnsonGenerator", "padding": "each"},
)
# A step gives a generator two images and a discriminator three for each of its batch.
SIZES, BATCHES = (256, 128), (2, 1, 8, 3, 6, 16, 24)
# First, so that --few names what they share with others as the whole list does.
DCGAN = (
    ({"class": "DCGANGenerator"}, (64, 100, 1, 1)),
    ({"class": "DCGANDiscriminator"}, (64, 3, 64, 64)),
)
# Channels and halo of the images that a step is given.
WINDOWS = ((3, 0), (1, 0), (3, 3))


class Calls(TorchDispatchMode):
    """Notes every call of our ops; convolutions lay out their results as cuDNN does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[tuple, tuple[str, dict[str, Any]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "fastcyclegan":
            key = (name, *(layout(x) if isinstance(x, torch.Tensor) else x for x in args))
            names = [argument.name for argument in func._schema.arguments]
            self.calls.setdefault(key, (name, dict(zip(names, args, strict=True))))
        return out.to(memory_format=torch.channels_last) if name == "convolution" else out


def layout(x: torch.Tensor) -> tuple:
    return tuple(x.shape), x.stride(), x.storage_offset(), x.dtype


def preset_cases(name: str) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """(network, shape of its input) as a step of the preset ``name`` has them."""
    config = apply_preset(TrainConfig(preset=name), frozenset())
    n, size = config.batch_size, config.crop_size
    if config.model == "dcgan":
        networks = dcgan_assembly.architectures(config)
        inputs = {"G": (n, config.nz, 1, 1), "D": (n, config.output_nc, size, size)}
        return [(networks[name], shape) for name, shape in inputs.items()]
    networks = assembly.architectures(config)
    # the joint step's, and the sequential one's and whoever translates'
    counts = {"G_A": (2 * n, n), "D_A": (3 * n, n)}
    return [
        (networks[name], (count, networks[name]["input_nc"], size, size))
        for name in counts
        for count in counts[name]
    ]


def op_calls(
    dtype: torch.dtype, networks: Sequence[dict], sizes: Sequence[int], batches: Sequence[int]
) -> list[tuple[str, dict[str, Any]]]:
    """(op, arguments) of every distinct call in a forward and a backward of ``networks``."""
    shapes = [(arch, (n, 3, size, size)) for size, n, arch in product(sizes, batches, networks)]
    if networks is NETWORKS:
        shapes += [case for name in PRESETS for case in preset_cases(name)]
    with Calls() as recorder, torch.device("meta"):
        for arch, shape in (*DCGAN, *shapes):
            net = build(arch)
            net.impl = "triton"
            if shape[2] % net.multiple:
                continue
            weights = [w.detach().requires_grad_() for w in net.weights_in(dtype)]
            x = torch.empty(shape, dtype=dtype)
            x = x.to(memory_format=torch.channels_last).requires_grad_()
            y = net.compute(x, weights)
            torch.autograd.grad(y, [x, *weights], torch.empty_like(y))
    return list(recorder.calls.values())


def data_calls(dtype: torch.dtype) -> list[tuple[str, dict[str, Any]]]:
    """As :func:`op_calls`, of what a step does with images besides: cutting them, and the pool."""
    with Calls() as recorder, torch.device("meta"):
        for channels, pad in WINDOWS:
            pixels = torch.empty((2**20, channels), dtype=torch.uint8)
            plan = [torch.empty(2, dtype=torch.int64) for _ in augment.PLAN]
            augment.augment(pixels, *plan, (256, 256), dtype, pad=pad, impl="triton")
        count, before, seed = (torch.empty((), dtype=torch.int64) for _ in range(3))
        table, order = (torch.empty((rows, 1000), dtype=torch.int64) for rows in (3, 2))
        number = torch.empty((1,), dtype=torch.int64)
        for epochs, size, flip in product((order, None), ((256, 256), None), (True, False)):
            drawn = number, seed, table, size, epochs, count
            windows.draw_windows(*drawn, stream=0, flip=flip, impl="triton")
        shut = torch.empty((), dtype=torch.bool)
        for n in BATCHES:
            pool, images = (
                torch.empty((k, 3, 256, 256), dtype=dtype).to(memory_format=torch.channels_last)
                for k in (50, n)
            )
            drawn = seed, 0, torch.empty((n,), dtype=torch.int64)
            image_pool.image_pool(pool, count, images, *drawn, impl="triton")
            undone = pool, count, images, before, *drawn, shut
            image_pool.undo_image_pool(*undone, impl="triton")
    return list(recorder.calls.values())
