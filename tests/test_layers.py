"""Norms and dropout inside the networks: formulas, modes, dtypes and gradients."""

import pytest
import torch

from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator, UnetGenerator
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.layers import Layer, normalise
from fastcyclegan.models.resnet import decode
from fastcyclegan.steps.optimiser import Weights


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) * 2 + 0.5


def batch_layer(channels: int) -> Layer:
    scale, shift, mean = (random(channels, seed=s) for s in (1, 2, 3))
    weight = torch.zeros(channels, 1, 1, 1, dtype=torch.float64)
    return Layer(weight, None, "batch", scale, shift, mean, mean.square() + 0.5)


def test_batch_norm_in_training_uses_and_records_the_batch():
    x, layer = random(2, 5, 7, 4), batch_layer(5)
    before = layer.mean.clone(), layer.var.clone()
    mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
    per_channel = (slice(None), None, None)
    wanted = (x - mean[per_channel]) / (var[per_channel] + 1e-5).sqrt()
    wanted = torch.relu(wanted * layer.scale[per_channel] + layer.shift[per_channel])
    torch.testing.assert_close(normalise(x, layer, "relu", True), wanted)
    n = 2 * 7 * 4
    torch.testing.assert_close(layer.mean, 0.9 * before[0] + 0.1 * mean)
    torch.testing.assert_close(layer.var, 0.9 * before[1] + 0.1 * var * n / (n - 1))


def test_batch_norm_outside_training_uses_the_running_statistics():
    x, layer = random(2, 5, 7, 4), batch_layer(5)
    before = layer.mean.clone(), layer.var.clone()
    found = normalise(x, layer, "none", False)
    for c in range(5):
        wanted = (x[:, c] - before[0][c]) / (before[1][c] + 1e-5).sqrt()
        torch.testing.assert_close(found[:, c], wanted * layer.scale[c] + layer.shift[c])
    assert torch.equal(layer.mean, before[0]) and torch.equal(layer.var, before[1])


def test_no_norm_only_activates():
    x = random(1, 2, 3, 3)
    layer = Layer(torch.zeros(2, 1, 1, 1))
    assert torch.equal(normalise(x, layer, "none"), x)
    assert torch.equal(normalise(x, layer, "relu"), x.clamp_min(0))
    assert torch.equal(normalise(x, layer, "leaky_relu"), torch.where(x > 0, x, 0.2 * x))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_through_batch_norm(n, memory_format):
    """By finite differences, for cotangents of either layout: torch has been wrong there before."""
    x = random(n, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = batch_layer(3)
    affine = [layer.scale.requires_grad_(), layer.shift.requires_grad_()]

    def norm(x, scale, shift):
        fresh = layer._replace(scale=scale, shift=shift, mean=layer.mean.clone())
        y = normalise(x, fresh._replace(var=layer.var.clone()), "none", True)
        return y.square().contiguous(memory_format=memory_format)

    assert torch.autograd.gradcheck(norm, (x, *affine))


def test_resize_repeats_pixels_and_pads_by_reflection():
    x, weights = random(1, 4, 3, 2), [random(w, c, 3, 3, seed=c) for w, c in ((2, 4), (1, 2))]
    last = random(3, 1, 7, 7, seed=9) * 0.01
    layers = [Layer(w) for w in (*weights, last)]
    y = x
    for weight in weights:
        y = y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        y = torch.relu(torch.nn.functional.conv2d(torch.nn.ReflectionPad2d(1)(y), weight))
    y = torch.tanh(torch.nn.functional.conv2d(torch.nn.ReflectionPad2d(3)(y), last))
    torch.testing.assert_close(decode(x, layers, "resize", "tanh", True), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scale_and_shift_of_a_norm_stay_in_fp32(dtype):
    """Their copies are the masters themselves in bf16; only convolutions are cast."""
    net = NLayerDiscriminator(ndf=4, norm="batch")
    weights = Weights(net, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for (name, _), master, copy in zip(
        net.live_parameters(), weights.masters, weights.copies, strict=True
    ):
        norm = name.rpartition(".")[0] in ("model.3", "model.6", "model.9")
        assert copy.dtype == (wide if norm else dtype), name
        assert (copy is master) == (norm and dtype == torch.bfloat16)
    with torch.no_grad():
        for master in weights.masters:
            master += 1
    weights.refresh()
    for master, copy in zip(weights.masters, weights.copies, strict=True):
        assert torch.equal(copy, master.to(copy.dtype))


def networks_with_dropout():
    resnet = {"ngf": 4, "n_blocks": 2}
    unet = {"ngf": 4, "num_downs": 7}
    for cls, options in ((ResnetGenerator, resnet), (UnetGenerator, unet)):
        plain, dropping = cls(**options), cls(**options, dropout=True)
        for net in (plain, dropping):
            init_weights(net, 0.1, torch.Generator().manual_seed(0))
        yield plain, dropping, random(1, 3, 128, 128, dtype=torch.float32)


def test_dropout_drops_in_training_alone_and_by_torch_seed():
    for plain, dropping, x in networks_with_dropout():
        with torch.no_grad():
            assert torch.equal(dropping.eval()(x), plain.eval()(x))
            dropping.train()
            outputs = []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                outputs.append(dropping(x))
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])
        assert not torch.equal(outputs[0], plain(x))


def test_dropout_stands_where_jz_has_it(monkeypatch):
    """Between the convolutions of each block; behind the inner levels of a U-Net, not the first."""
    seen = []

    def dropout(x, p, training):
        seen.append((tuple(x.shape[1:]), p, training))
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    for _, dropping, x in networks_with_dropout():
        dropping(x)
    blocks = [((16, 32, 32), 0.5, True)] * 2
    assert seen == blocks + [((32, side, side), 0.5, True) for side in (4, 8)]


def test_batch_norm_counts_its_passes_in_training():
    net = NLayerDiscriminator(ndf=2, norm="batch")
    x = torch.rand(1, 3, 32, 32)
    net(x)
    net.compute(x, net.weights_in(x.dtype))
    net.eval()(x)
    counts = [v.item() for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counts == [2, 2, 2]
