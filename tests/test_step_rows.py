"""Rows of a ladder: what is built is what is named, and what is off is not measured."""

import pytest
import torch

from bench import step_rows
from bench.our_step import LARGEST_ERROR
from bench.step_rows import Row, Size, begin, build, expected, missing
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
    assert (begun.gradient_error == 0) == (row.name == "reference")
    begun.step()
    second = begun.step()
    assert not torch.equal(second.float().cpu(), begun.losses), "the step has moved nothing"


@pytest.mark.parametrize("size", [CYCLEGAN, DCGAN], ids=lambda size: size.name)
@pytest.mark.parametrize("options", [{}, BF16], ids=["fp32", "bf16"])
def test_a_wrong_backward_pass_is_not_measured(monkeypatch, size, options):
    """Nothing goes back through a block, or a DCGAN's discriminator; the losses are right."""
    row, right = Row("", options), step_rows._system
    name, kind = ("G_A", "residual_block") if size is CYCLEGAN else ("D", "dcgan_discriminator")

    def wrong(*given):
        system = right(*given)
        net = system.model.networks[name]
        net.pieces = net.PIECES | {kind: without_gradient(net.PIECES[kind])}
        return system

    expected(row, size, 3)
    monkeypatch.setattr(step_rows, "_system", wrong)
    begun = begin(row, size, 3)
    assert begun.error <= LARGEST_ERROR[row.precision]
    with pytest.raises(AssertionError, match="the gradients are off by"):
        begun.check(row)


def without_gradient(piece):
    """Of its first input; it gives zeros, as autograd asks for some gradient."""
    return lambda x, *rest, **options: piece(x.detach() + 0 * x, *rest, **options)


class Recorder:
    """Stands in for CUDA graphs: a replay does the step again, and ``spoils`` the losses."""

    def __init__(self, spoils: float) -> None:
        self.spoils, self.replayed = spoils, 0

    def run(self, step):
        return step()

    def record(self, step):
        self.step, self.losses = step, torch.zeros(8)
        return self, self.losses

    def replay(self):
        self.replayed += 1
        self.losses.copy_(self.step()).add_(self.spoils)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("spoils", [0.0, 0.3])
def test_a_captured_row_is_judged_by_a_replay(monkeypatch, spoils, drawn):
    recorder = Recorder(spoils)
    monkeypatch.setattr(step_rows, "CudaGraphs", lambda device: recorder)
    row = Row("captured", {"cuda_graph": "on"}, drawn=drawn)
    begun = begin(row, CYCLEGAN)
    assert recorder.replayed == 2
    if not spoils:
        begun.check(row)
        return
    with pytest.raises(AssertionError, match="the losses are off by"):
        begun.check(row)


def test_what_needs_a_compiler_is_missing_without_one(monkeypatch):
    """On a GPU all that runs kernels needs one."""
    lack = "no C++ compiler found (install g++)"
    monkeypatch.setattr(step_rows, "lack_of_compiler", lambda device: lack)
    compiled = Row("", {"compile": True}), Row("", {"impl": "reference"}, mode="default")
    plain = Row("", {"impl": "reference"}), Row("", kernels=False)
    assert [missing(row, CYCLEGAN) for row in (*compiled, *plain)] == [lack, lack, None, None]
    assert missing(Row(""), CYCLEGAN) is None
    monkeypatch.setattr(step_rows, "DEVICE", torch.device("cuda"))
    assert missing(Row(""), CYCLEGAN) == lack
    assert [missing(row, CYCLEGAN) for row in plain] == [None, None]


def test_a_row_without_identity_is_compared_with_its_like():
    row = Row("without", {"lambda_identity": 0.0})
    assert begin(row, CYCLEGAN).error < 1e-4
    assert (expected(row, CYCLEGAN).losses == 0).sum() == 2
    assert (expected(Row("with"), CYCLEGAN).losses == 0).sum() == 0


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
    begun.error, begun.gradient_error = 0.0, error * 2
    with pytest.raises(AssertionError, match="nothing is recorded"):
        begun.check(ROWS[0])
    begun.error = None
    begun.check(Row("", peer={}))
