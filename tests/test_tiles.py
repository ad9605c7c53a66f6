"""Bands give what the whole image gives: values, statistics, memory, refusals."""

import pytest
import torch

from fastcyclegan.models import ResnetGenerator, UnetGenerator
from fastcyclegan.models.inference import Inference, Stage
from fastcyclegan.models.tiles import Moments, TiledInference
from test_inference import KINDS, generator, images


def tiled(net, x, tile, dtype=torch.float64):
    """The whole result, the plan, and the shares that were told."""
    height, width = x.shape[2:]
    function, parts, told, asked = TiledInference(net, dtype), [], [], []

    def read(start, stop):
        asked.append(stop - start)
        return x[:, :, start:stop]

    def write(start, rows):
        assert start == sum(part.shape[2] for part in parts)
        parts.append(rows.clone())

    function(read, write, height, width, tile, told.append)
    plan = function.plan(height, width, tile)
    assert len(parts) == plan.bands and told[-1] == 1.0 and len(told) == plan.sweeps
    assert plan.bands == 1 or plan.sweeps == 1 or max(asked) < height
    return torch.cat(parts, 2), plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "tile"), [(64, 16), (52, 24), (40, 10**6)])
@torch.no_grad()
def test_tiles_are_the_whole_image(kind, height, tile):
    net = generator(**KINDS[kind]).double()
    x = images(1, net.arch["input_nc"], height, 36) * 2 - 1
    result, plan = tiled(net, x, tile)
    assert plan.bands > 1 or tile > height
    assert plan.sweeps == (1 if net.norm != "instance" else 3 + 2 * 2 + 3)
    assert (result - Inference(net, torch.float64)(x)).abs().max() < 1e-9


@torch.no_grad()
def test_many_blocks_reach_over_many_bands():
    """With running statistics the reach of one sweep is that of all convolutions together."""
    net = generator(ngf=4, n_blocks=9, norm="batch").double()
    x = images(1, 3, 128, 16) * 2 - 1
    result, plan = tiled(net, x, 11)
    assert plan.rows == 8 and plan.bands == 16
    assert (result - net(x)).abs().max() < 1e-9


@torch.no_grad()
def test_fp32_is_within_a_level_of_the_whole():
    net = generator(ngf=16, n_blocks=3)
    x = images(1, 3, 96, 80).float() * 2 - 1
    result, _ = tiled(net, x, 32, torch.float32)
    assert (result - Inference(net, torch.float32)(x)).abs().max() * 127.5 < 0.05


def test_moments_of_pieces_are_those_of_the_whole():
    x = images(1, 5, 64, 7).float() * 3 + 1000
    moments = Moments()
    for part in x.split([1, 30, 2, 31], 2):
        moments.add(part.contiguous(memory_format=torch.channels_last))
    mean, var = moments.statistics()
    true_var, true_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert (mean - true_mean).abs().max() < 1e-3
    assert ((var - true_var) / true_var).abs().max() < 1e-3


def test_a_plan_says_what_is_kept():
    """8192 x 8192 with ngf 16: two maps of 64 x 2048 x 2048 in fp32, and a band."""
    with torch.device("meta"):
        net = ResnetGenerator(ngf=16)
    plan = TiledInference(net, torch.float32).plan(8192, 8192, 1024)
    kept = 2 * 64 * 2048 * 2048 * 4
    assert (plan.rows, plan.bands, plan.sweeps) == (128, 64, 24)
    assert kept < plan.memory < kept + 0.6e9


def test_a_plan_of_one_sweep_counts_how_far_its_bands_reach(monkeypatch):
    """Thin bands of many blocks: nearly all of what the first layers compute is around them."""
    net, x, sizes = generator(ngf=4, n_blocks=9, norm="batch"), images(1, 3, 384, 64).float(), []
    convolve = Stage.convolve

    def spied(stage, *given):
        y = convolve(stage, *given)
        sizes.append(y.nbytes)
        return y

    monkeypatch.setattr(Stage, "convolve", spied)
    with torch.no_grad():
        _, plan = tiled(net, x, 23, torch.float32)
    # the widest map, what its norm makes of it, and the input of the next layer with its padding
    assert plan.rows == 8 and plan.memory > 3 * max(sizes)


@pytest.mark.parametrize(("norm", "tile"), [("instance", 48), ("batch", 48), ("batch", 96)])
def test_a_plan_knows_how_much_is_computed_again(monkeypatch, norm, tile):
    net, x, work = generator(ngf=16, n_blocks=9, norm=norm), images(1, 3, 256, 48).float(), []
    convolve = Stage.convolve

    def counted(stage, *given):
        y = convolve(stage, *given)
        pixels = y[0, 0].numel() / (4 if stage.kind == "up" else 1)
        work[-1] += pixels * stage.layer.weight.numel()
        return y

    monkeypatch.setattr(Stage, "convolve", counted)
    with torch.no_grad():
        work.append(0)
        _, plan = tiled(net, x, tile, torch.float32)
        work.append(0)
        Inference(net, torch.float32)(x)
    assert abs(plan.work / (work[0] / work[1]) - 1) < 0.1


def test_a_unet_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="innermost levels see the whole image"):
        TiledInference(UnetGenerator(ngf=1, num_downs=5), torch.float32)
