"""Networks: JZ's keys, shapes, counts and rules; channels_last throughout."""

import pytest
import torch
from torch.nn import functional as F

from fastcyclegan.errors import UserError
from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator, build
from fastcyclegan.models.network import init_weights


def is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("n_blocks", "parameters", "tensors"), [(9, 11_378_179, 48), (6, 7_837_699, 36)]
)
def test_generator_counts(n_blocks, parameters, tensors):
    net = ResnetGenerator(n_blocks=n_blocks)
    assert (count(net), len(net.state_dict())) == (parameters, tensors)


@pytest.mark.parametrize(
    ("n_layers", "parameters", "side"),
    [
        (1, 136_385, 126),
        (2, 662_977, 62),
        (3, 2_764_737, 30),
        (4, 6_959_553, 14),
        (5, 11_154_369, 6),
    ],
)
def test_discriminator_counts_and_output_size(n_layers, parameters, side):
    net = NLayerDiscriminator(n_layers=n_layers)
    assert count(net) == parameters
    assert NLayerDiscriminator(ndf=2, n_layers=n_layers)(torch.rand(1, 3, 256, 256)).shape == (
        1, 1, side, side,
    )  # fmt: skip


def test_generator_keys_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in ResnetGenerator().state_dict().items()}
    wanted = {
        "model.1": (64, 3, 7, 7),
        "model.4": (128, 64, 3, 3),
        "model.7": (256, 128, 3, 3),
        "model.19": (256, 128, 3, 3),
        "model.22": (128, 64, 3, 3),
        "model.26": (3, 64, 7, 7),
    }
    for block in range(10, 19):
        for index in (1, 5):
            wanted[f"model.{block}.conv_block.{index}"] = (256, 256, 3, 3)
    biases = {key: shape[0] for key, shape in wanted.items()}
    biases |= {"model.19": 128, "model.22": 64}  # transposed: the second number is the output's
    assert {k: s for k, s in shapes.items() if k.endswith("weight")} == {
        f"{key}.weight": shape for key, shape in wanted.items()
    }
    assert {k: s for k, s in shapes.items() if k.endswith("bias")} == {
        f"{key}.bias": (width,) for key, width in biases.items()
    }


def test_zero_padding_moves_the_keys_of_the_blocks():
    """JZ has no padding layer then, so that the convolutions are numbers 0 and 3."""
    keys = ResnetGenerator(ngf=2, n_blocks=1, padding="zero").state_dict()
    assert [k for k in keys if "conv_block" in k and "weight" in k] == [
        "model.10.conv_block.0.weight",
        "model.10.conv_block.3.weight",
    ]


def test_discriminator_keys():
    keys = [k for k in NLayerDiscriminator(ndf=2).state_dict() if k.endswith("weight")]
    assert keys == [f"model.{i}.weight" for i in (0, 2, 5, 8, 11)]


def plain_generator(net: ResnetGenerator, x: torch.Tensor) -> torch.Tensor:
    """The generator written a second time, in NCHW, with every bias and torch's own norm."""
    state = net.state_dict()
    mode = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}[net.padding]
    first, second = ("0", "3") if net.padding == "zero" else ("1", "5")

    def convolution(x, key, function=F.conv2d, **options):
        return function(x, state[f"{key}.weight"].contiguous(), state[f"{key}.bias"], **options)

    n = net.arch["n_blocks"]
    up = {"function": F.conv_transpose2d, "stride": 2, "padding": 1, "output_padding": 1}
    x = F.pad(x, (3, 3, 3, 3), mode="reflect")
    x = F.relu(F.instance_norm(convolution(x, "model.1")))
    for key in ("model.4", "model.7"):
        x = F.relu(F.instance_norm(convolution(x, key, stride=2, padding=1)))
    for index in range(10, 10 + n):
        y = F.pad(x, (1, 1, 1, 1), mode=mode)
        y = F.relu(F.instance_norm(convolution(y, f"model.{index}.conv_block.{first}")))
        y = F.pad(y, (1, 1, 1, 1), mode=mode)
        x = x + F.instance_norm(convolution(y, f"model.{index}.conv_block.{second}"))
    for index in (10 + n, 13 + n):
        x = F.relu(F.instance_norm(convolution(x, f"model.{index}", **up)))
    return torch.tanh(convolution(F.pad(x, (3, 3, 3, 3), mode="reflect"), f"model.{17 + n}"))


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 20, 12)])
def test_generator_equals_its_plain_form(padding, shape):
    """In fp64, with biases in front of the norms that are far from 0: they must not matter."""
    net = ResnetGenerator(ngf=4, n_blocks=2, padding=padding).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    x = torch.rand(shape, dtype=torch.float64, generator=generator) * 2 - 1
    torch.testing.assert_close(net(x), plain_generator(net, x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n_layers", [1, 3, 4])
def test_discriminator_equals_its_plain_form(n_layers):
    net = NLayerDiscriminator(ndf=4, n_layers=n_layers).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    image = torch.rand((2, 3, 64, 64), dtype=torch.float64, generator=generator)
    keys = [key.removesuffix(".weight") for key in state if key.endswith("weight")]
    x = image
    for i, key in enumerate(keys):
        stride = 1 if i >= n_layers else 2
        x = F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], stride=stride, padding=1)
        if 0 < i <= n_layers:
            x = F.instance_norm(x)
        if i <= n_layers:
            x = F.leaky_relu(x, 0.2)
    torch.testing.assert_close(net(image), x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_from_input_to_output(dtype):
    seen = []

    def watch(piece):
        def watched(x, *arguments):
            y = piece(x, *arguments)
            seen.extend((x, y))
            return y

        return watched

    for net in (ResnetGenerator(ngf=4, n_blocks=2), NLayerDiscriminator(ndf=4)):
        net.pieces = {name: watch(piece) for name, piece in net.PIECES.items()}
        weights = [p.to(dtype) for _, p in net.live_parameters()]
        x = torch.rand(2, 3, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
        assert all(is_channels_last(w) for w in weights if w.ndim == 4)
        assert net.compute(x, weights).dtype == dtype
    assert len(seen) == 2 * (1 + 2 + 1) + 2
    assert all(is_channels_last(x) for x in seen)


def test_dead_biases_are_absent_from_the_step():
    live = [name for name, _ in ResnetGenerator(ngf=2, n_blocks=2).live_parameters()]
    assert [name for name in live if "bias" in name] == ["model.19.bias"]
    live = [name for name, _ in NLayerDiscriminator(ndf=2).live_parameters()]
    assert [name for name in live if "bias" in name] == ["model.0.bias", "model.11.bias"]


def test_live_parameters_survive_freezing():
    """A frozen network still computes with all of its weights."""
    net = NLayerDiscriminator(ndf=2)
    before = len(list(net.live_parameters()))
    net.requires_grad_(False)
    assert len(list(net.live_parameters())) == before == 7


def test_initialisation_is_normal_and_a_function_of_the_seed():
    nets = [ResnetGenerator(n_blocks=2) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        init_weights(net, 0.02, torch.Generator().manual_seed(seed))
    a, b, other = (net.state_dict() for net in nets)
    weight = a["model.10.conv_block.1.weight"]
    assert abs(weight.std().item() - 0.02) < 2e-4 and abs(weight.mean().item()) < 2e-4
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["model.1.weight"], other["model.1.weight"])
    assert all(not value.any() for key, value in a.items() if key.endswith("bias"))


def test_build_reads_what_arch_says():
    for net in (ResnetGenerator(3, 1, 4, 2, padding="zero"), NLayerDiscriminator(1, 4, 2)):
        copy = build(net.arch)
        assert copy.arch == net.arch
        assert {k: v.shape for k, v in copy.state_dict().items()} == {
            k: v.shape for k, v in net.state_dict().items()
        }


@pytest.mark.parametrize(
    ("arch", "named"),
    [
        ({"class": "Evil"}, "Evil"),
        ({}, "None"),
        ({"class": "ResnetGenerator", "blocks": 3}, "blocks"),
        ({"class": "ResnetGenerator", "norm": "batch"}, "batch"),
        ({"class": "NLayerDiscriminator", "norm": "none"}, "none"),
    ],
)
def test_build_refuses_in_one_line(arch, named):
    with pytest.raises(UserError, match=named) as problem:
        build(arch)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_smallest_input_of_the_discriminator(n_layers):
    side = NLayerDiscriminator.smallest_input(n_layers)
    net = NLayerDiscriminator(ndf=2, n_layers=n_layers)
    assert net(torch.rand(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 3, side - 1, side - 1))
