"""A generator as a row of stages: the same output as the network, whole or by some of its rows."""

import pytest
import torch
from torch.nn import functional as F

from fastcyclegan.models import ResnetGenerator, winograd
from fastcyclegan.models.inference import Inference, stages_of
from fastcyclegan.models.initialisation import init_weights

KINDS = {
    "instance": {},
    "batch": {"norm": "batch"},
    "none": {"norm": "none"},
    "replicate": {"padding": "replicate"},
    "zero, dropout": {"padding": "zero", "dropout": True},
    "resize": {"upsample": "resize"},
    "grey to colour and alpha": {"input_nc": 1, "output_nc": 4},
    "residual relu": {"residual_relu": True},
}


def generator(ngf=6, n_blocks=2, **arguments):
    net = ResnetGenerator(ngf=ngf, n_blocks=n_blocks, **arguments)
    init_weights(net, 0.2, torch.Generator().manual_seed(0))
    for name, value in net.named_buffers():
        if value.is_floating_point():  # running statistics that are not those of a fresh norm
            torch.manual_seed(len(name))
            value.copy_(torch.rand_like(value) + 0.5)
    return net.eval()


def images(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_inference_is_the_network(kind):
    net = generator(**KINDS[kind]).double()
    x = images(2, net.arch["input_nc"], 24, 20) * 2 - 1
    assert (Inference(net, torch.float64)(x) - net(x)).abs().max() < 1e-9


@torch.no_grad()
def test_the_fast_ways_of_fp32_are_as_good_as_the_network():
    """Wide enough for Winograd."""
    net = generator(ngf=16, n_blocks=3)
    x = images(1, 3, 36, 44).float() * 2 - 1
    truth = net.double()(x.double())
    net.float()
    assert stages_of(net, torch.float32)[3].layer.weight.shape[:2] == (64, 64)
    ours, plain = ((f(x) - truth).abs().max().item() for f in (Inference(net, x.dtype), net))
    assert ours <= 8 * plain + 1e-6 and ours * 127.5 < 0.01


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (5, 18), (67, 33), (3, 130)])
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (65, 64)])
def test_winograd_is_the_convolution(size, channels):
    into, out_of = channels
    x = images(2, into, size[0] + 2, size[1] + 2).float() - 0.2
    weight, bias = images(out_of, into, 3, 3, seed=2).float() - 0.5, images(out_of, seed=3).float()
    truth = F.conv2d(x.double(), weight.double(), bias.double())
    direct = (F.conv2d(x, weight, bias) - truth).abs().max()
    y = winograd.convolve(x, winograd.transform_kernel(weight), bias)
    assert y.shape == truth.shape and y.is_contiguous(memory_format=torch.channels_last)
    assert (y - truth).abs().max() <= 20 * direct + 1e-5


@pytest.mark.parametrize("kind", ["instance", "replicate", "zero, dropout", "resize"])
@torch.no_grad()
def test_rows_of_a_stage_are_rows_of_its_whole(kind):
    """Any rows, from no more of the input than the stage asks for."""
    x = images(1, 3, 16, 12)
    for stage in stages_of(generator(**KINDS[kind]).double(), torch.float64):
        rows = x.shape[2]
        whole = stage.convolve(x, 0, stage.out_rows(rows), rows)
        assert whole.shape[2] == stage.out_rows(rows)
        for start, stop in ((0, 4), (0, 2), (2, 4), (whole.shape[2] - 2, whole.shape[2])):
            first, last = stage.source(start, stop, rows)
            some = stage.convolve(x[:, :, first:last], start, stop, rows)
            assert (some - whole[:, :, start:stop]).abs().max() < 1e-12, (stage.kind, start, stop)
        x = stage.finish(whole, None, torch.zeros_like(whole))


@torch.no_grad()
def test_statistics_from_elsewhere_are_used():
    stage = stages_of(generator().double(), torch.float64)[0]
    y = images(1, 6, 8, 8)
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    own, given = stage.finish(y.clone(), None, None), stage.finish(y.clone(), (mean, var), None)
    assert (own - given).abs().max() < 1e-12
    assert (stage.finish(y.clone(), (mean + 1, var), None) - own).abs().max() > 0.1


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one():
    function = Inference(generator(), torch.float32)
    x = images(3, 3, 16, 16).float()
    assert torch.equal(function(x), torch.cat(list(map(function, x.split(1)))))


def test_bf16_is_close():
    net = generator(ngf=8)
    x = images(1, 3, 32, 32).float() * 2 - 1
    with torch.no_grad():
        near, exact = (Inference(net, t)(x).float() for t in (torch.bfloat16, x.dtype))
    error = (near - exact).abs()
    assert 1e-4 < error.mean() < 0.05
