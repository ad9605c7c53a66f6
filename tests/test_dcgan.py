"""DCGAN's networks and their files: keys, counts, shapes, foreign weights, samples."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastcyclegan import load_generator
from fastcyclegan.config import DCGAN_SIZES, TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.models import DCGANDiscriminator, DCGANGenerator, build
from fastcyclegan.models.examples import write_pth
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.sampling import fixed_noise, generate, slerp
from fastcyclegan.models.weights import load_network, save_network
from fastcyclegan.options import parse_explicit
from fastcyclegan.presets import apply_preset
from fastcyclegan.steps.dcgan_assembly import architectures


def plain_generator(nz: int, ngf: int, nc: int, size: int) -> nn.Sequential:
    """The same from torch's modules, in the order that the keys have."""
    width = ngf * size // 8
    layers = [nn.ConvTranspose2d(nz, width, 4, 1, 0, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    while width > ngf:
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width // 2), nn.ReLU()]
        width //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh())


def plain_discriminator(nc: int, ndf: int, size: int) -> nn.Sequential:
    layers, width = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)], ndf
    while width < ndf * size // 8:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 0, bias=False), nn.Sigmoid())


def twins(size: int, nc: int = 3) -> list[tuple[nn.Module, nn.Sequential]]:
    """Ours and the plain one, with the same weights, both networks; fp64."""
    ours = DCGANGenerator(6, 4, nc, size), DCGANDiscriminator(nc, 4, size)
    plain = plain_generator(6, 4, nc, size), plain_discriminator(nc, 4, size)
    generator = torch.Generator().manual_seed(size)
    for mine, theirs in zip(ours, plain, strict=True):
        init_weights(mine, 0.1, generator)
        state = {k.removeprefix("main."): v for k, v in mine.state_dict().items()}
        theirs.load_state_dict(state)
    return [(a.double(), b.double()) for a, b in zip(ours, plain, strict=True)]


def derived(widths: list[int]) -> list[int]:
    """Of G and D: 4x4 kernels without bias, and two numbers per normalised channel."""
    pairs = list(zip([100, *widths], [*widths, 3], strict=True))
    of_G = sum(16 * a * b for a, b in pairs) + 2 * sum(widths)
    pairs = list(zip([3, *widths[::-1]], [*widths[::-1], 1], strict=True))
    return [of_G, sum(16 * a * b for a, b in pairs) + 2 * sum(widths[:-1])]


@pytest.mark.parametrize(
    ("words", "widths", "counts"),
    [
        (["--preset", "dcgan"], [512, 256, 128, 64], [3_576_704, 2_765_568]),
        (["--model", "dcgan"], [512, 256, 128, 64], [3_576_704, 2_765_568]),
        (["--preset", "dcgan_small"], [128, 64, 32], [370_624, 167_808]),
    ],
)
def test_parameter_counts_are_those_of_the_derivation(words, widths, counts):
    """The paper's for 64 px, from the options on."""
    config = apply_preset(*parse_explicit(TrainConfig, "train", "", words))
    with torch.device("meta"):
        nets = [build(arch) for arch in architectures(config).values()]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == derived(widths) == counts


@pytest.mark.parametrize("size", DCGAN_SIZES)
def test_networks_are_the_plain_ones(size):
    """Outputs and running statistics, in training and in eval mode; every size."""
    (G, plain_G), (D, plain_D) = twins(size)
    z = torch.randn(3, 6, 1, 1, dtype=torch.float64)
    for training in (True, False):
        for net in (G, D, plain_G, plain_D):
            net.train(training)
        fake = plain_G(z)
        assert fake.shape == (3, 3, size, size)
        torch.testing.assert_close(G(z), fake, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.sigmoid(D(fake)), plain_D(fake), rtol=1e-10, atol=1e-12)
    for net, plain in ((G, plain_G), (D, plain_D)):
        mine = {k.removeprefix("main."): v for k, v in net.named_buffers()}
        torch.testing.assert_close(mine, dict(plain.named_buffers()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("nc", [1, 4, 5])
def test_any_number_of_channels(nc):
    (G, plain_G), (D, plain_D) = twins(32, nc)
    fake = G(torch.randn(2, 6, 1, 1, dtype=torch.float64))
    assert fake.shape == (2, nc, 32, 32) and D(fake).shape == (2, 1, 1, 1)
    assert G.state_dict().keys() == {f"main.{k}" for k in plain_G.state_dict()}
    assert D.state_dict().keys() == {f"main.{k}" for k in plain_D.state_dict()}


@pytest.mark.parametrize("arch", [{"size": 48}, {"size": 8}, {"size": 512}, {"norm": "instance"}])
@pytest.mark.parametrize("name", ["DCGANGenerator", "DCGANDiscriminator"])
def test_what_no_dcgan_is(name, arch):
    with pytest.raises(UserError, match=f"{name} cannot be built"):
        build({"class": name, **arch})


def test_outputs_stay_channels_last():
    G, D = DCGANGenerator(5, 4, 3, 32), DCGANDiscriminator(3, 4, 32)
    with torch.no_grad():
        fake = G.compute(torch.randn(2, 5, 1, 1).bfloat16(), G.weights_in(torch.bfloat16))
        assert (
            fake.is_contiguous(memory_format=torch.channels_last) and fake.dtype == torch.bfloat16
        )
        assert D.compute(fake, D.weights_in(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [16, 64])
def test_files_of_pytorch_examples_in_and_out(tmp_path, size):
    """A state dict as its torch.save writes it; ours come back to its modules as they were."""
    (G, plain_G), (D, plain_D) = ((a.float(), b.float()) for a, b in twins(size))
    for net, plain, name in ((G, plain_G, "netG_epoch_3.pth"), (D, plain_D, "netD.pth")):
        theirs = tmp_path / f"their_{name}"
        torch.save({f"main.{k}": v for k, v in plain.state_dict().items()}, theirs)
        loaded, metadata = load_network(theirs)
        assert loaded.arch == net.arch and metadata["assumed"] == {}
        write_pth(tmp_path / name, loaded)
        back = torch.load(tmp_path / name, weights_only=True)
        assert all(value.is_contiguous() for value in back.values())
        assert list(back) == [f"main.{k}" for k in plain.state_dict()]
        plain.load_state_dict({k.removeprefix("main."): v for k, v in back.items()})
        assert all(torch.equal(net.state_dict()[k], v) for k, v in back.items())
    z = torch.randn(2, 6, 1, 1)
    found = load_generator(tmp_path)  # the folder of its --outf
    torch.testing.assert_close(found(z), plain_G.eval()(z), rtol=0, atol=1e-5)


def test_the_last_epoch_of_their_folder_is_taken(tmp_path):
    for epoch, nz in ((2, 5), (10, 7)):
        write_pth(tmp_path / f"netG_epoch_{epoch}.pth", DCGANGenerator(nz, 2, 3, 16))
    assert load_generator(tmp_path).arch["nz"] == 7


def test_the_average_is_preferred_in_a_run(tmp_path):
    (tmp_path / "weights").mkdir()
    for name, nz in (("G", 5), ("G_ema", 7)):
        save_network(tmp_path / f"weights/{name}.safetensors", DCGANGenerator(nz, 2, 3, 16), step=1)
    assert load_generator(tmp_path).arch["nz"] == 7


def test_a_file_that_only_looks_like_a_dcgan(tmp_path):
    path = tmp_path / "netG.pth"
    torch.save({"main.0.weight": torch.zeros(3, 4, 4, 4)}, path)
    with pytest.raises(UserError, match=r"netG.pth is none of .*not those of a DCGAN"):
        load_network(path)
    state = DCGANGenerator(5, 2, 3, 16).state_dict()
    del state["main.4.running_var"]
    torch.save({k: v.contiguous() for k, v in state.items()}, path)
    with pytest.raises(UserError, match=r"DCGANGenerator.*main.4.running_var is missing"):
        load_network(path)


def test_fixed_noise_depends_on_seed_and_place_alone():
    z = fixed_noise(3, 10, 9)
    assert torch.equal(fixed_noise(3, 4, 9), z[:4]) and not torch.equal(fixed_noise(4, 10, 9), z)
    assert len({tuple(row) for row in z.tolist()}) == 10


def test_slerp_walks_on_great_circles():
    start, end = fixed_noise(0, 2, 50)[:1], fixed_noise(0, 2, 50)[1:]
    assert torch.allclose(slerp(start, end, 0.0), start, atol=1e-5)
    assert torch.allclose(slerp(start, end, 1.0), end, atol=1e-5)
    total = math.acos(float(nn.functional.cosine_similarity(start, end)))
    for share in (0.25, 0.5):
        point = slerp(start, end, share)
        turned = math.acos(float(nn.functional.cosine_similarity(start, point)))
        assert turned == pytest.approx(share * total, abs=1e-3)
        length = (1 - share) * start.norm() + share * end.norm()
        assert float(point.norm()) == pytest.approx(float(length), rel=1e-5)
    assert torch.allclose(slerp(start, start, 0.3), start, atol=1e-5)


def test_generate_is_eval_mode_in_parts():
    """Any number of images, each by its noise alone; the network's mode is left as it was."""
    net = DCGANGenerator(5, 2, 3, 16).train()
    init_weights(net, 0.2, torch.Generator().manual_seed(0))
    z = fixed_noise(0, 70, 5)
    images = generate(net, z)
    assert net.training and images.shape == (70, 3, 16, 16)
    alone = torch.cat([generate(net, z[i : i + 1]) for i in (0, 69)])
    np.testing.assert_allclose(images[[0, 69]].numpy(), alone.numpy(), atol=1e-6)
