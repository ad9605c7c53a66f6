"""Networks: JZ's keys, shapes, counts and rules; channels_last throughout."""

import pytest
import torch
from torch.nn import functional as F

from fastcyclegan.errors import UserError
from fastcyclegan.models import (
    NLayerDiscriminator,
    PixelDiscriminator,
    ResnetGenerator,
    UnetGenerator,
    build,
)


def is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("arch", "parameters", "tensors"),
    [
        ({"class": "ResnetGenerator"}, 11_378_179, 48),
        ({"class": "ResnetGenerator", "n_blocks": 6}, 7_837_699, 36),
        ({"class": "ResnetGenerator", "norm": "batch"}, 11_383_427, 140),
        ({"class": "ResnetGenerator", "dropout": True}, 11_378_179, 48),
        ({"class": "ResnetGenerator", "upsample": "resize"}, 11_378_179, 48),
        ({"class": "UnetGenerator", "norm": "batch"}, 54_413_955, 82),
        ({"class": "UnetGenerator"}, 54_409_603, 32),
        ({"class": "UnetGenerator", "num_downs": 7}, 41_825_667, 28),
        ({"class": "NLayerDiscriminator"}, 2_764_737, 10),
        ({"class": "NLayerDiscriminator", "input_nc": 6, "norm": "batch"}, 2_768_705, 22),
        ({"class": "PixelDiscriminator"}, 8_705, 6),
    ],
)
def test_counts_are_those_of_jz(arch, parameters, tensors):
    """As published; ``test_jz_agreement.py`` has the other combinations, from JZ's own code."""
    with torch.device("meta"):
        net = build(arch)
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


def weight_keys(net: torch.nn.Module) -> dict[str, tuple]:
    """Prefix and shape of each convolution's weight."""
    state = net.state_dict()
    return {k.removesuffix(".weight"): tuple(v.shape) for k, v in state.items() if v.ndim == 4}


def test_dropout_moves_the_second_convolution_of_a_block():
    keys = weight_keys(ResnetGenerator(ngf=2, n_blocks=1, dropout=True))
    assert [k for k in keys if "block" in k] == ["model.10.conv_block.1", "model.10.conv_block.6"]
    keys = weight_keys(ResnetGenerator(ngf=2, n_blocks=1, dropout=True, padding="zero"))
    assert [k for k in keys if "block" in k] == ["model.10.conv_block.0", "model.10.conv_block.4"]


def test_batch_norm_keys():
    keys = set(ResnetGenerator(ngf=2, n_blocks=1, norm="batch").state_dict())
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = (2, 5, 8, "10.conv_block.2", "10.conv_block.6", 12, 15)
    assert {f"model.{norm}.{leaf}" for norm in norms for leaf in leaves} <= keys
    assert [
        key for key in keys if key.endswith(".bias") and f"{key[:-4]}running_var" not in keys
    ] == ["model.18.bias"]


def test_resize_has_the_keys_of_an_enlargement_and_a_convolution():
    keys = weight_keys(ResnetGenerator(upsample="resize"))
    assert {k: keys[k] for k in list(keys)[-3:]} == {
        "model.20": (128, 256, 3, 3),
        "model.24": (64, 128, 3, 3),
        "model.28": (3, 64, 7, 7),
    }


def test_unet_keys_and_shapes():
    with torch.device("meta"):
        keys = weight_keys(UnetGenerator())
    deepest = "model.model.1.model" + ".3.model" * 6
    assert keys[f"{deepest}.1"] == keys[f"{deepest}.3"] == (512, 512, 4, 4)
    downs = [(64, 3), (128, 64), (256, 128), (512, 256), *[(512, 512)] * 4]
    ups = [(512, 512), *[(1024, 512)] * 3, (1024, 256), (512, 128), (256, 64), (128, 3)]
    assert list(keys.values()) == [(*shape, 4, 4) for shape in downs + ups]
    assert list(keys)[:2] == ["model.model.0", "model.model.1.model.1"]
    assert list(keys)[-2:] == ["model.model.1.model.5", "model.model.3"]


@pytest.mark.parametrize(("norm", "biases"), [("instance", [64, 128, 1]), ("batch", [64, 128])])
def test_pixel_discriminator_keys(norm, biases):
    state = PixelDiscriminator(norm=norm).state_dict()
    assert weight_keys(PixelDiscriminator(norm=norm)) == {
        "net.0": (64, 3, 1, 1),
        "net.2": (128, 64, 1, 1),
        "net.5": (1, 128, 1, 1),
    }
    assert [v.numel() for k, v in state.items() if k.endswith(".bias")] == biases


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
        x = F.relu(x) if net.arch["residual_relu"] else x
    for index in (10 + n, 13 + n):
        x = F.relu(F.instance_norm(convolution(x, f"model.{index}", **up)))
    return torch.tanh(convolution(F.pad(x, (3, 3, 3, 3), mode="reflect"), f"model.{17 + n}"))


@pytest.mark.parametrize("residual_relu", [False, True])
@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 20, 12)])
def test_generator_equals_its_plain_form(padding, shape, residual_relu):
    """In fp64, with biases in front of the norms that are far from 0: they must not matter."""
    words = {"padding": padding, "residual_relu": residual_relu}
    net = ResnetGenerator(ngf=4, n_blocks=2, **words).double()
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

    for net in (
        ResnetGenerator(ngf=4, n_blocks=2),
        ResnetGenerator(ngf=4, n_blocks=1, norm="batch", upsample="resize", dropout=True),
        UnetGenerator(ngf=4, num_downs=5, norm="batch", dropout=True),
        NLayerDiscriminator(ndf=4, norm="batch"),
        PixelDiscriminator(ndf=4, norm="none"),
    ):
        net.pieces = {name: watch(piece) for name, piece in net.PIECES.items()}
        weights = net.weights_in(dtype)
        x = torch.rand(2, 3, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
        assert all(is_channels_last(w) for w in weights if w.ndim == 4)
        assert net.compute(x, weights).dtype == dtype
    assert len(seen) == 2 * (4 + 3 + 1 + 1 + 1)
    assert all(is_channels_last(x) for x in seen)


def test_dead_biases_are_absent_from_the_step():
    live = [name for name, _ in ResnetGenerator(ngf=2, n_blocks=2).live_parameters()]
    assert [name for name in live if "bias" in name] == ["model.19.bias"]
    live = [name for name, _ in NLayerDiscriminator(ndf=2).live_parameters()]
    assert [name for name in live if "bias" in name] == ["model.0.bias", "model.11.bias"]
    live = [name for name, _ in UnetGenerator(ngf=2, num_downs=5).live_parameters()]
    innermost = "model.model.1.model.3.model.3.model.3.model.1.bias"
    assert [k for k in live if "bias" in k] == [
        "model.model.0.bias",
        innermost,
        "model.model.3.bias",
    ]
    for net in (NLayerDiscriminator(ndf=2, norm="batch"), UnetGenerator(ngf=2, norm="none")):
        assert len(list(net.live_parameters())) == len(list(net.parameters()))


def test_live_parameters_survive_freezing():
    """A frozen network still computes with all of its weights."""
    net = NLayerDiscriminator(ndf=2)
    before = len(list(net.live_parameters()))
    net.requires_grad_(False)
    assert len(list(net.live_parameters())) == before == 7


def test_build_reads_what_arch_says():
    for net in (
        ResnetGenerator(3, 1, 4, 2, padding="zero", dropout=True, upsample="resize"),
        UnetGenerator(4, 2, 4, 6, "batch", True),
        NLayerDiscriminator(1, 4, 2, "none"),
        PixelDiscriminator(5, 4, "batch"),
    ):
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
        ({"class": "ResnetGenerator", "norm": "syncbatch"}, "syncbatch"),
        ({"class": "ResnetGenerator", "upsample": "bilinear"}, "bilinear"),
        ({"class": "UnetGenerator", "num_downs": 4}, "num_downs=4"),
        ({"class": "UnetGenerator", "num_downs": 2000}, "num_downs=2000"),
        ({"class": "NLayerDiscriminator", "norm": 3}, "norm=3"),
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
