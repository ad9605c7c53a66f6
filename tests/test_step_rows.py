"""Rows of a ladder: what is built is what is named, and what is off is not measured."""

import pytest
import torch

from bench.step_rows import Row, Size, begin, build, expected_losses
from fastcyclegan.presets import PRESETS

OPTIONS = {"netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "load_size": 36, "crop_size": 32}
CYCLEGAN, DCGAN = Size("tiny", OPTIONS), Size("dcgan", PRESETS["dcgan"] | {"ngf": 4, "ndf": 4})
BF16 = {"precision": "bf16"}
ROWS = [
    Row("reference", {"impl": "reference"}),
    Row("autocast", {"impl": "reference"}, autocast=True),
    Row("fused", BF16),
    Row("references for kernels", BF16, kernels=False),
    Row("drawn", drawn=True),
]


@pytest.mark.parametrize("size", [CYCLEGAN, DCGAN], ids=lambda size: size.name)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_computes_what_the_reference_does(row, size):
    begun = begin(row, size, 3)
    begun.check(row)
    assert begun.seconds > 0 and (begun.error == 0) == (row.name == "reference")
    second = begun.step()
    assert not torch.equal(second.float().cpu(), begun.losses), "the step has moved nothing"


def test_a_row_without_identity_is_compared_with_its_like():
    row = Row("without", {"lambda_identity": 0.0})
    assert begin(row, CYCLEGAN).error < 1e-4
    assert (expected_losses(row, CYCLEGAN) == 0).sum() == 2
    assert (expected_losses(Row("with"), CYCLEGAN) == 0).sum() == 0


def test_drawn_images_change():
    """By the same weights: a rate of 1e-12 moves none of them."""
    still = {"lr": 1e-12, "pool_size": 0}
    fixed, drawn = (build(Row("", still, drawn=d), CYCLEGAN) for d in (False, True))
    first, again = fixed().clone(), fixed().clone()
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first, drawn().clone(), rtol=1e-4, atol=1e-6)
    assert (drawn() - first).abs().max() > 1e-3


def test_switches_are_those_of_the_row(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    build(Row("", benchmark=True), CYCLEGAN)
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    build(Row(""), CYCLEGAN)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("error", [0.02, float("nan")])
def test_what_is_off_is_not_measured(error):
    begun = begin(ROWS[0], CYCLEGAN)
    begun.error = error
    begun.check(Row("", autocast=True)) if error == 0.02 else None
    with pytest.raises(AssertionError, match="nothing is recorded"):
        begun.check(ROWS[0])
    begun.error = None
    begun.check(Row("", peer={}))
