"""Inception-v3 as the Frechet inception distance uses it: 2,048 features of an image.

The network of Szegedy et al., Rethinking the Inception Architecture for Computer Vision (2015),
with the keys of torchvision's; its pooling branches are those of the TensorFlow weights of 2015
that FID is defined by: averages leave the padding out, and the last block takes the maximum.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 2048
# Pixels: a side of what the network is given; images are scaled to it.
SIDE = 299
_EPS = 1e-3
# Of classifiers, which features do without.
_UNUSED = ("fc.", "AuxLogits.")

Shape = tuple[int, int, int, int]


def _block_a(inputs: int, pool: int) -> dict[str, Shape]:
    return {
        "branch1x1": (inputs, 64, 1, 1),
        "branch5x5_1": (inputs, 48, 1, 1),
        "branch5x5_2": (48, 64, 5, 5),
        "branch3x3dbl_1": (inputs, 64, 1, 1),
        "branch3x3dbl_2": (64, 96, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
        "branch_pool": (inputs, pool, 1, 1),
    }


def _block_b(inputs: int) -> dict[str, Shape]:
    return {
        "branch3x3": (inputs, 384, 3, 3),
        "branch3x3dbl_1": (inputs, 64, 1, 1),
        "branch3x3dbl_2": (64, 96, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    }


def _block_c(inner: int) -> dict[str, Shape]:
    return {
        "branch1x1": (768, 192, 1, 1),
        "branch7x7_1": (768, inner, 1, 1),
        "branch7x7_2": (inner, inner, 1, 7),
        "branch7x7_3": (inner, 192, 7, 1),
        "branch7x7dbl_1": (768, inner, 1, 1),
        "branch7x7dbl_2": (inner, inner, 7, 1),
        "branch7x7dbl_3": (inner, inner, 1, 7),
        "branch7x7dbl_4": (inner, inner, 7, 1),
        "branch7x7dbl_5": (inner, 192, 1, 7),
        "branch_pool": (768, 192, 1, 1),
    }


def _block_d() -> dict[str, Shape]:
    return {
        "branch3x3_1": (768, 192, 1, 1),
        "branch3x3_2": (192, 320, 3, 3),
        "branch7x7x3_1": (768, 192, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    }


def _block_e(inputs: int) -> dict[str, Shape]:
    return {
        "branch1x1": (inputs, 320, 1, 1),
        "branch3x3_1": (inputs, 384, 1, 1),
        "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1),
        "branch3x3dbl_1": (inputs, 448, 1, 1),
        "branch3x3dbl_2": (448, 384, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3),
        "branch3x3dbl_3b": (384, 384, 3, 1),
        "branch_pool": (inputs, 192, 1, 1),
    }


# Convolutions by key: channels in and out, height and width of the kernel.
_STEM = {
    "Conv2d_1a_3x3": (3, 32, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (32, 64, 3, 3),
    "Conv2d_3b_1x1": (64, 80, 1, 1),
    "Conv2d_4a_3x3": (80, 192, 3, 3),
}
_KEYS = {
    "Mixed_5b": _block_a(192, 32),
    "Mixed_5c": _block_a(256, 64),
    "Mixed_5d": _block_a(288, 64),
    "Mixed_6a": _block_b(288),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e(1280),
    "Mixed_7c": _block_e(2048),
}
CONVOLUTIONS = _STEM | {f"{b}.{key}": s for b, keys in _KEYS.items() for key, s in keys.items()}


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a state dict must hold, by key."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in CONVOLUTIONS.items():
        inputs, outputs, *kernel = shape
        shapes[f"{key}.conv.weight"] = (outputs, inputs, *kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.bn.{name}"] = (outputs,)
    return shapes


class InceptionV3(nn.Module):
    """(N, 3, H, W) uint8 to (N, 2048) features, in the dtype of its weights.

    Args:
        tensors: a state dict; what belongs to a classifier is not used.

    Raises:
        ValueError: a tensor is missing, is one too many, or has another shape.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _check(tensors)
        for key in CONVOLUTIONS:
            norm = ("weight", "bias", "running_mean", "running_var")
            scale, shift, mean, var = (tensors[f"{key}.bn.{name}"].double() for name in norm)
            # the norm goes into the weights: what is left of it is a bias
            scale = scale / (var + _EPS).sqrt()
            weight = tensors[f"{key}.conv.weight"].double() * scale[:, None, None, None]
            self.register_buffer(_name(key, "weight"), weight.float())
            self.register_buffer(_name(key, "bias"), (shift - mean * scale).float())

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.get_buffer(_name("Conv2d_1a_3x3", "bias")).dtype) / 127.5 - 1
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self._conv("Conv2d_1a_3x3", x, stride=2)
        x = self._conv("Conv2d_2a_3x3", x)
        x = self._conv("Conv2d_2b_3x3", x, same=True)
        x = F.max_pool2d(x, 3, 2)
        x = self._conv("Conv2d_3b_1x1", x)
        x = self._conv("Conv2d_4a_3x3", x)
        x = F.max_pool2d(x, 3, 2)
        for name, block in BLOCKS.items():
            x = block(self, name, x)
        return x.mean((2, 3))

    def _conv(self, key: str, x: Tensor, stride: int = 1, same: bool = False) -> Tensor:
        weight, bias = (self.get_buffer(_name(key, part)) for part in ("weight", "bias"))
        padding = [side // 2 for side in weight.shape[2:]] if same else 0
        return F.relu(F.conv2d(x, weight, bias, stride, padding))

    def _chain(self, block: str, x: Tensor, *keys: str) -> Tensor:
        for key in keys:
            x = self._conv(f"{block}.{key}", x, same=True)
        return x

    def _a(self, block: str, x: Tensor) -> Tensor:
        double = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        branches = [
            self._chain(block, x, "branch1x1"),
            self._chain(block, x, "branch5x5_1", "branch5x5_2"),
            self._chain(block, x, *double),
            self._chain(block, _average(x), "branch_pool"),
        ]
        return torch.cat(branches, 1)

    def _b(self, block: str, x: Tensor) -> Tensor:
        double = self._chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2")
        branches = [
            self._conv(f"{block}.branch3x3", x, stride=2),
            self._conv(f"{block}.branch3x3dbl_3", double, stride=2),
            F.max_pool2d(x, 3, 2),
        ]
        return torch.cat(branches, 1)

    def _c(self, block: str, x: Tensor) -> Tensor:
        branches = [
            self._chain(block, x, "branch1x1"),
            self._chain(block, x, *(f"branch7x7_{i}" for i in range(1, 4))),
            self._chain(block, x, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
            self._chain(block, _average(x), "branch_pool"),
        ]
        return torch.cat(branches, 1)

    def _d(self, block: str, x: Tensor) -> Tensor:
        single = self._chain(block, x, "branch3x3_1")
        seven = self._chain(block, x, *(f"branch7x7x3_{i}" for i in range(1, 4)))
        branches = [
            self._conv(f"{block}.branch3x3_2", single, stride=2),
            self._conv(f"{block}.branch7x7x3_4", seven, stride=2),
            F.max_pool2d(x, 3, 2),
        ]
        return torch.cat(branches, 1)

    def _e(self, block: str, x: Tensor) -> Tensor:
        single = self._chain(block, x, "branch3x3_1")
        double = self._chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2")
        pooled = F.max_pool2d(x, 3, 1, 1) if block == "Mixed_7c" else _average(x)
        branches = [
            self._chain(block, x, "branch1x1"),
            *(self._chain(block, single, f"branch3x3_2{half}") for half in "ab"),
            *(self._chain(block, double, f"branch3x3dbl_3{half}") for half in "ab"),
            self._chain(block, pooled, "branch_pool"),
        ]
        return torch.cat(branches, 1)


# What each block computes.
BLOCKS = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), InceptionV3._a),
    "Mixed_6a": InceptionV3._b,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), InceptionV3._c),
    "Mixed_7a": InceptionV3._d,
    **dict.fromkeys(("Mixed_7b", "Mixed_7c"), InceptionV3._e),
}


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _name(key: str, part: str) -> str:
    return f"{key.replace('.', '_')}_{part}"


def _check(tensors: Mapping[str, Tensor]) -> None:
    expected = expected_shapes()
    for key, shape in expected.items():
        if key not in tensors:
            raise ValueError(f"{key} is missing")
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, not {shape}")
    for key in tensors:
        counted = key.endswith(".bn.num_batches_tracked")
        if key not in expected and not counted and not key.startswith(_UNUSED):
            raise ValueError(f"{key[:80]!r} is not part of the network")
