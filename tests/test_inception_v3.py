"""Inception-v3: the published keys and counts, and its parts by PyTorch's own modules."""

from math import prod

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.models.inception_v3 import (
    BLOCKS,
    CONVOLUTIONS,
    FEATURES,
    InceptionV3,
    expected_shapes,
)
from fastcyclegan.runs.features import Extractor


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Random weights that keep the scale of what passes, and norms that are not the identity."""
    generator = torch.Generator().manual_seed(0)

    def value(key, shape):
        if key.endswith("running_var"):
            return torch.rand(shape, generator=generator) + 0.5
        x = torch.randn(shape, generator=generator)
        return x * (2 / prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1 * x + 0.5

    return {key: value(key, shape) for key, shape in expected_shapes().items()}


def test_counts_are_those_of_the_published_network():
    """As in every framework: 94 convolutions, 21,785,568 parameters without the classifier."""
    assert len(CONVOLUTIONS) == 94
    shapes = expected_shapes()
    parameters = {k: s for k, s in shapes.items() if "running" not in k}
    assert sum(map(prod, parameters.values())) == 21_785_568
    assert shapes["Mixed_6c.branch7x7dbl_5.conv.weight"] == (192, 160, 1, 7)
    assert shapes["Mixed_7b.branch3x3dbl_3a.bn.running_var"] == (384,)


def unit(tensors, key, stride, padding):
    """A convolution, its norm in eval mode and a ReLU, as PyTorch's modules."""
    weight = tensors[f"{key}.conv.weight"]
    out, inputs, *kernel = weight.shape
    conv = nn.Conv2d(inputs, out, kernel, stride, padding, bias=False)
    norm = nn.BatchNorm2d(out, eps=1e-3)
    conv.weight.data = weight
    names = "weight", "bias", "running_mean", "running_var"
    norm.load_state_dict({n: tensors[f"{key}.bn.{n}"] for n in names}, strict=False)
    return nn.Sequential(conv, norm, nn.ReLU()).eval()


def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def halve(x):
    return F.max_pool2d(x, 3, 2)


def largest(x):
    return F.max_pool2d(x, 3, 1, 1)


WIDE, HIGH = (0, 3), (3, 0)
A = [
    [("branch1x1", 1, 0)],
    [("branch5x5_1", 1, 0), ("branch5x5_2", 1, 2)],
    [("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1)],
    [average, ("branch_pool", 1, 0)],
]
B = [
    [("branch3x3", 2, 0)],
    [("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 2, 0)],
    [halve],
]
C = [
    [("branch1x1", 1, 0)],
    [("branch7x7_1", 1, 0), ("branch7x7_2", 1, WIDE), ("branch7x7_3", 1, HIGH)],
    [
        *(("branch7x7dbl_1", 1, 0), ("branch7x7dbl_2", 1, HIGH), ("branch7x7dbl_3", 1, WIDE)),
        *(("branch7x7dbl_4", 1, HIGH), ("branch7x7dbl_5", 1, WIDE)),
    ],
    [average, ("branch_pool", 1, 0)],
]
D = [
    [("branch3x3_1", 1, 0), ("branch3x3_2", 2, 0)],
    [
        *(("branch7x7x3_1", 1, 0), ("branch7x7x3_2", 1, WIDE), ("branch7x7x3_3", 1, HIGH)),
        ("branch7x7x3_4", 2, 0),
    ],
    [halve],
]
DOUBLE = [("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 1, 1)]
E = [
    [("branch1x1", 1, 0)],
    [("branch3x3_1", 1, 0), ("branch3x3_2a", 1, (0, 1))],
    [("branch3x3_1", 1, 0), ("branch3x3_2b", 1, (1, 0))],
    [*DOUBLE, ("branch3x3dbl_3a", 1, (0, 1))],
    [*DOUBLE, ("branch3x3dbl_3b", 1, (1, 0))],
]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "channels", "branches"),
    [
        ("Mixed_5b", 192, A),
        ("Mixed_6a", 288, B),
        ("Mixed_6d", 768, C),
        ("Mixed_7a", 768, D),
        ("Mixed_7b", 1280, [*E, [average, ("branch_pool", 1, 0)]]),
        ("Mixed_7c", 2048, [*E, [largest, ("branch_pool", 1, 0)]]),
    ],
)
def test_a_block_is_its_branches_by_pytorchs_modules(tensors, name, channels, branches):
    x = torch.rand(1, channels, 9, 9, generator=torch.Generator().manual_seed(1))
    found = BLOCKS[name](InceptionV3(tensors), name, x)
    outputs = []
    for branch in branches:
        y = x
        for step in branch:
            y = step(y) if callable(step) else unit(tensors, f"{name}.{step[0]}", *step[1:])(y)
        outputs.append(y)
    truth = torch.cat(outputs, 1)
    assert found.shape == truth.shape
    assert (found - truth).abs().max() < 1e-4 * truth.abs().max()


def test_features_of_images_of_any_size_and_classifiers_that_are_left_out(tensors, tmp_path):
    extras = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    extras["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(tensors | extras, tmp_path / "inception.pth")
    extract = Extractor(tmp_path / "inception.pth", "inception_v3")
    assert extract.name == "inception_v3"
    x = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8)
    found = extract(x)
    assert found.shape == (2, FEATURES) and not torch.equal(found[0], found[1])
    # one grey is the same at any size
    greys = [torch.full((1, side, side, 3), 99, dtype=torch.uint8) for side in (20, 299)]
    small, large = map(extract, greys)
    assert (small - large).abs().max() < 1e-5 * large.abs().max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Mixed_5b.branch1x1.bn.bias": None}, "Mixed_5b.branch1x1.bn.bias is missing"),
        ({"Mixed_5b.branch1x1.bn.bias": torch.zeros(3)}, r"has shape \(3,\), not \(64,\)"),
        ({"Mixed_8a.x": torch.zeros(1)}, "'Mixed_8a.x' is not part of the network"),
    ],
)
def test_weights_that_do_not_fit(tensors, change, words):
    changed = {k: x for k, x in (tensors | change).items() if x is not None}
    with pytest.raises(ValueError, match=words):
        InceptionV3(changed)
