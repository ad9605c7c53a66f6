"""The networks with the kernels against the networks with the references.

Tests with a ``device`` run the kernels: on a GPU, or in a process of their own under Triton's
interpreter, which ``test_under_interpreter`` starts.
"""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import numerics
from fastcyclegan.config import TrainConfig
from fastcyclegan.kernels import dispatch, norm_config
from fastcyclegan.models import Network, build, resnet
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.steps.assembly import make_networks
from fastcyclegan.steps.cyclegan import DISCRIMINATORS as JUDGES
from fastcyclegan.steps.cyclegan import GENERATORS, STEPS, CycleGAN, Settings
from fastcyclegan.steps.losses import gradient_penalty
from numerics import DEVICES, assert_close

RESNET = {"class": "ResnetGenerator", "ngf": 4, "n_blocks": 2}
PATCHGAN = {"class": "NLayerDiscriminator", "ndf": 4}
# Name: network and shape of its input. A trunk of 5 x 7 pixels; sides that no stride divides.
NETWORKS = {
    "resnet": (RESNET, (2, 3, 20, 28)),
    # a trunk of 3 x 2; four images, as the rounding of one alone is a matter of luck there
    "resnet, smallest": (RESNET | {"n_blocks": 1}, (4, 3, 12, 8)),
    "resnet, resize, dropout": (RESNET | {"upsample": "resize", "dropout": True}, (1, 3, 16, 20)),
    "resnet, zero padding": (RESNET | {"padding": "zero"}, (1, 3, 16, 20)),
    # many pixels: on fewer the rounding of kernel and reference differs by luck, up to four times
    "resnet, batch norm": (RESNET | {"norm": "batch"}, (8, 3, 24, 28)),
    "patchgan": (PATCHGAN, (2, 3, 47, 37)),
    "pixel": ({"class": "PixelDiscriminator", "ndf": 4}, (1, 3, 9, 7)),
    "dcgan generator": ({"class": "DCGANGenerator", "ngf": 4, "nz": 5, "size": 32}, (16, 5, 1, 1)),
    "dcgan discriminator": ({"class": "DCGANDiscriminator", "ndf": 4, "size": 32}, (16, 3, 32, 32)),
    "unet": ({"class": "UnetGenerator", "ngf": 2, "num_downs": 5}, (1, 3, 64, 32)),
}
# What may stand in a trunk beside what reads or writes no image: views and weights.
OURS = {"instance_norm_fwd", "instance_norm_bwd", "reflection_pad_fwd"}
PASSES = {"convolution", "convolution_backward", "tanh", "tanh_backward", *OURS}
VIEWS = {"slice", "detach", "getitem"}

on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch):
    """The interpreter runs programs one after the other: 2 instead of hundreds."""
    if dispatch.interpreted():
        monkeypatch.setattr(norm_config, "PROGRAMS", 2)


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(arch: dict, device: str) -> Network:
    net = build(arch).to(device)
    init_weights(net, 0.2, torch.Generator().manual_seed(3))
    return net


def random_image(shape: tuple, dtype: torch.dtype, device: str) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(4)) * 2 - 1
    x = x.to(device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def run(net: Network, x: torch.Tensor, impl: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output and every gradient, computed in ``dtype`` from what ``x`` and its dtype round to."""
    names = ["x"] + [name for name, _ in net.live_parameters()]
    leaves = [x, *net.weights_in(x.dtype)]
    leaves = [t.detach().to(dtype).requires_grad_() for t in leaves]
    net = copy.deepcopy(net).to(dtype)
    net.impl = impl
    torch.manual_seed(0)  # of dropout
    y = net.compute(leaves[0], leaves[1:])
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)
    grads = torch.autograd.grad((y * weights.to(dtype)).sum() + y.square().sum(), leaves)
    return {"y": y.detach()} | dict(zip(names, grads, strict=True))


def compare(name: str, arch: dict, x: torch.Tensor) -> None:
    net = network(arch, x.device.type)
    truth = run(net, x, "ref", torch.float64)
    peer = run(net, x, "ref", x.dtype)
    found = run(net, x, "triton", x.dtype)
    for key, true in truth.items():
        assert_close(found[key], true, peer[key], f"{key} of {name}")


@on_devices
@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_every_gradient(name, device):
    arch, shape = NETWORKS[name]
    compare(name, arch, random_image(shape, torch.float32, device))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("name", ("ResnetGenerator", "NLayerDiscriminator", "UnetGenerator"))
def test_output_and_every_gradient_at_256_pixels(name, dtype):
    compare(name, {"class": name}, random_image((2, 3, 256, 256), dtype, "cuda"))


def test_the_option_impl_chooses_for_all_networks():
    config = TrainConfig(netG="resnet_1blocks", ngf=2, ndf=2)
    for option, impl in (("fused", None), ("reference", "ref")):
        networks = make_networks(replace(config, impl=option), torch.device("cpu"))
        assert [net.impl for net in networks.values()] == [impl] * 4


class Recorder(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def recorded(net: Network, x: torch.Tensor) -> Counter[str]:
    """The operators of a forward and a backward, up to the gradient of every weight."""
    net.impl = "triton"
    weights = net.weights_in(x.dtype)
    x = x.detach()
    dy = torch.ones_like(net.compute(x, weights))
    with Recorder() as recorder:
        torch.autograd.grad(net.compute(x, weights), weights, dy)
    return recorder.seen


@pytest.fixture
def unfolded_ends(monkeypatch):
    """The first and last convolution as they are written, so that only the trunk is counted."""
    for name in ("conv_from_few", "conv_to_few"):
        monkeypatch.setattr(resnet, name, F.conv2d)


@on_devices
def test_no_pass_of_its_own_for_padding_activation_or_addition(device, unfolded_ends):
    """Between its ends a ResNet is convolutions and our ops; it pads its input alone by itself."""
    seen = recorded(network(RESNET, device), random_image((1, 3, 16, 20), torch.float32, device))
    layers, norms = 6 + 2 * 2, 5 + 2 * 2
    assert {name: n for name, n in seen.items() if name not in VIEWS} == {
        "reflection_pad_fwd": 1,
        "convolution": layers,
        "convolution_backward": layers,
        "instance_norm_fwd": norms,
        "instance_norm_bwd": norms,
        "tanh": 1,
        "tanh_backward": 1,
    }
    seen = recorded(network(PATCHGAN, device), random_image((1, 3, 47, 37), torch.float32, device))
    assert {name: n for name, n in seen.items() if name not in VIEWS} == {
        "convolution": 5,
        "convolution_backward": 5,
        "instance_norm_fwd": 3,
        "instance_norm_bwd": 3,
        "leaky_relu": 1,
        "leaky_relu_backward": 1,
    }


@on_devices
def test_nor_any_in_compiled_pieces(device, unfolded_ends):
    """Each in graphs of its own, between which the padded image and the skip are handed on."""
    seen: Counter[str] = Counter()

    def record(graph, inputs):
        calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        packets = [getattr(target, "overloadpacket", target) for target in calls]
        seen.update(packet.__name__ for packet in packets)
        return torch._functorch.aot_autograd.make_boxed_func(graph.forward)

    net = network(RESNET, device)
    x = random_image((1, 3, 16, 20), torch.float32, device)
    eager = run(net, x, "triton", torch.float32)
    options = {"fullgraph": True, "dynamic": False, "backend": aot_autograd(fw_compiler=record)}
    net.pieces = {name: torch.compile(piece, **options) for name, piece in net.PIECES.items()}
    compiled = run(net, x, "triton", torch.float32)
    for name, tensor in eager.items():
        assert torch.equal(compiled[name], tensor), name
    assert seen.keys() - VIEWS == (PASSES | {"reflection_pad_bwd"})
    # nor does the code around them bring a gradient into the layout of its output
    net.impl, weights = "triton", net.weights_in(x.dtype)
    y = net.compute(x.detach(), weights)
    with Recorder() as recorder:
        torch.autograd.grad(y, weights, torch.ones_like(y))
    assert recorder.seen["instance_norm_bwd"] == 9 and "copy_" not in recorder.seen


def step(impl: str, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """Losses, and the gradients of each network in one row, of one training step."""
    arch = {"G": RESNET | {"n_blocks": 1}, "D": PATCHGAN | {"n_layers": 1}}
    networks = {name: network(arch[name[0]], device).to(dtype) for name in GENERATORS + JUDGES}
    settings = Settings(gan_mode="wgangp", lambda_identity=0, pool_size=3, dtype=dtype)
    model = CycleGAN(networks, settings, (3, 16, 16), (3, 16, 16))
    kept = {name for name, net in networks.items() if net.impl == "ref"}
    assert kept == set(JUDGES)
    for name in networks.keys() - kept:
        networks[name].impl = impl
    x = random_image((2, 3, 16, 16), torch.float32, device).detach().to(dtype)
    with Recorder() as recorder:
        found = {"losses": STEPS["fused"](model, x[:1], x[1:], torch.arange(1, device=device))}
    # on a GPU its gradient is not deterministic
    assert ("reflection_pad2d_backward" in recorder.seen) == (impl == "ref")
    for name, weights in model.weights.items():
        found[name] = torch.cat([p.grad.flatten() for p in weights.masters])
    return found


@on_devices
def test_a_whole_step(device):
    """With wgangp, where the discriminators keep the reference, to be differentiated twice."""
    truth = step("ref", torch.float64, device)
    peer = step("ref", torch.float32, device)
    found = step("triton", torch.float32, device)
    for name, true in truth.items():
        assert_close(found[name], true.double(), peer[name], name)


@on_devices
def test_the_kernels_refuse_a_second_derivative(device):
    judge = network(PATCHGAN, device)
    judge.impl = "triton"
    real, fake = (random_image((1, 3, 47, 37), torch.float32, device) for _ in range(2))
    penalty = gradient_penalty(judge, real, fake, torch.full((1,), 0.5, device=device))
    with pytest.raises(RuntimeError, match="instance_norm_bwd"):
        penalty.backward()


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) > 11
