"""The generator of fast style transfer: counts, sizes, formula, and what it refuses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcyclegan.errors import UserError
from fastcyclegan.models import JohnsonGenerator, build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.johnson import START
from fastcyclegan.models.weights import load_network, save_network
from fastcyclegan.pixel_range import PIXEL_RANGES
from fastcyclegan.translation import Translator


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def derived(ngf: int, channels: int = 3) -> int:
    """Weights and biases of 16 convolutions, scale and shift of the 15 norms behind all but one."""

    def convolution(inside: int, outside: int, side: int, normed: bool = True) -> int:
        return inside * outside * side**2 + outside + 2 * outside * normed

    ends = convolution(channels, ngf, 9) + convolution(ngf, channels, 9, normed=False)
    ways = convolution(ngf, 2 * ngf, 3) + convolution(2 * ngf, 4 * ngf, 3)
    back = convolution(4 * ngf, 2 * ngf, 3) + convolution(2 * ngf, ngf, 3)
    return ends + ways + back + 5 * 2 * convolution(4 * ngf, 4 * ngf, 3)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(padding: str, **changed) -> JohnsonGenerator:
    net = JohnsonGenerator(**{"ngf": 3, "padding": padding, **changed})
    init_weights(net, 0.2, torch.Generator().manual_seed(1))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.3, torch.Generator().manual_seed(2))
    return net.double()


def test_counts_are_those_of_the_derivation_and_of_pytorch_examples():
    net = JohnsonGenerator()
    assert count(net) == derived(32) == 1_679_235 and len(net.state_dict()) == 62
    assert count(JohnsonGenerator(ngf=64, input_nc=1, output_nc=1)) == derived(64, channels=1)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes["conv1.conv2d.weight"] == (32, 3, 9, 9) and shapes["in1.weight"] == (32,)
    assert shapes["res5.conv2.conv2d.weight"] == (128, 128, 3, 3) and shapes["in5.bias"] == (32,)
    assert shapes["deconv1.conv2d.weight"] == (128, 64, 3, 3)


@pytest.mark.parametrize(
    ("padding", "sides"),
    [("start", [168, 84, 80, 76, 72, 68, 64, 256]), ("each", [128, 64, 64, 64, 64, 64, 64, 256])],
)
def test_sizes_inside_for_256_pixels(padding, sides, monkeypatch):
    """With start: 256 -> 336 -> 168 -> 84, each block 4 less, 64 -> 128 -> 256."""
    from fastcyclegan.models import johnson

    seen, plain = [], F.conv2d

    def watched(x, *arguments, **named):
        y = plain(x, *arguments, **named)
        seen.append(y.shape[-1])
        return y

    monkeypatch.setattr(johnson.F, "conv2d", watched)
    y = JohnsonGenerator(ngf=1, padding=padding)(torch.rand(1, 3, 256, 256))
    first, *middle, _ = seen
    assert first == (336 if padding == "start" else 256)
    assert [middle[0], middle[1], *middle[3::2], y.shape[-1]] == sides
    assert START == 40


def formula(net: JohnsonGenerator, x: torch.Tensor) -> torch.Tensor:
    """The network written out with torch's own modules' functions, NCHW, from its state dict."""
    w = net.state_dict()
    start = net.padding == "start"

    def norm(x, key):
        var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        scale, shift = (w[f"{key}.{leaf}"].view(1, -1, 1, 1) for leaf in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def conv(x, key, pad=0, mode="reflect", stride=1):
        x = F.pad(x, (pad,) * 4, mode=mode)
        return F.conv2d(x, w[f"{key}.conv2d.weight"], w[f"{key}.conv2d.bias"], stride)

    if start:
        x = F.pad(x, (40,) * 4, mode="reflect")
    ends = {"pad": 4, "mode": "constant" if start else "reflect"}
    x = F.relu(norm(conv(x, "conv1", **ends), "in1"))
    for key, of in (("conv2", "in2"), ("conv3", "in3")):
        x = F.relu(norm(conv(x, key, 1, "constant", 2), of))
    for block in range(1, 6):
        y = F.relu(norm(conv(x, f"res{block}.conv1", 0 if start else 1), f"res{block}.in1"))
        y = norm(conv(y, f"res{block}.conv2", 0 if start else 1), f"res{block}.in2")
        x = y + (x[..., 2:-2, 2:-2] if start else x)
    for key, of in (("deconv1", "in4"), ("deconv2", "in5")):
        weight, bias = w[f"{key}.conv2d.weight"], w[f"{key}.conv2d.bias"]
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        x = F.relu(norm(x, of))
    return torch.tanh(conv(x, "deconv3", **ends))


@pytest.mark.parametrize("padding", ["start", "each"])
def test_it_is_its_formula(padding):
    """Dead biases of the convolutions included: the norms take them out again."""
    net = make(padding)
    x = random(2, 3, 52, 48) * 2 - 1
    torch.testing.assert_close(net(x), formula(net, x), rtol=1e-10, atol=1e-10)
    live = {name for name, _ in net.live_parameters()}
    assert {"in1.weight", "res1.in2.bias", "deconv3.conv2d.bias"} <= live
    assert "conv1.conv2d.bias" not in live and len(live) == 62 - 15


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_its_gradients_by_finite_differences(memory_format):
    """Of the weights, scales and shifts, along a random direction, for either cotangent layout."""
    net = make("start", ngf=2)
    x = random(1, 3, 44, 44)
    cotangent = random(1, 3, 44, 44, seed=3).contiguous(memory_format=memory_format)
    masters = [p for _, p in net.live_parameters()]
    gradients = torch.autograd.grad(net.compute(x, masters), masters, cotangent)
    direction = [random(*p.shape, seed=i) for i, p in enumerate(masters)]
    analytic = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-6, -1e-6):
            moved = [p + step * d for p, d in zip(masters, direction, strict=True)]
            values.append((net.compute(x, moved) * cotangent).sum())
    torch.testing.assert_close(analytic, (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("padding", "smallest"), [("start", 44), ("each", 8)])
def test_the_smallest_image_works_and_a_smaller_one_does_not(padding, smallest):
    net = JohnsonGenerator(ngf=1, padding=padding)
    assert net.smallest == smallest
    assert net(torch.rand(1, 3, smallest, smallest)).shape[2:] == (smallest, smallest)
    with pytest.raises(ValueError, match=f"reflection of {40 if padding == 'start' else 4} needs"):
        net(torch.rand(1, 3, smallest - 4, smallest))


@pytest.mark.parametrize("pixel_range", PIXEL_RANGES)
@pytest.mark.parametrize(("padding", "least"), [("start", 44), ("each", 16)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (17, 50)])
def test_translating_continues_an_image_that_is_too_small(padding, least, size, pixel_range):
    """By its reflection to what the network takes, in bytes before they become pixels."""
    net = make(padding, pixel_range=pixel_range).eval()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    sides = [max(least, -(-side // 4) * 4) for side in size]
    margins = [(0, to - side) for to, side in zip(sides, size, strict=True)]
    whole = np.pad(image, (*margins, (0, 0)), mode="reflect")
    x = torch.from_numpy(whole).permute(2, 0, 1)[None].double()
    tanh = pixel_range == "tanh"
    with torch.no_grad():
        y = net(x / 127.5 - 1 if tanh else x)[0].permute(1, 2, 0).numpy()
    y = ((y + 1) * 127.5 if tanh else y).clip(0, 255)[: size[0], : size[1]]
    written = Translator(net.float())(image[None])[0]
    assert written.shape == image.shape and np.abs(written - y).max() < 0.51


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_it_comes_back_from_its_file(norm, tmp_path):
    net = JohnsonGenerator(ngf=2, norm=norm, padding="each", pixel_range="tanh255").eval()
    save_network(tmp_path / "G.safetensors", net, step=3)
    back, metadata = load_network(tmp_path / "G.safetensors")
    assert back.arch == net.arch == metadata["arch"] and metadata["pixel_range"] == "tanh255"
    x = torch.rand(1, 3, 16, 20) * 255
    assert torch.equal(back.eval()(x), net(x))


def test_an_unknown_padding_is_refused():
    with pytest.raises(UserError, match="padding='middle': not one of start, each"):
        build({"class": "JohnsonGenerator", "padding": "middle"})
