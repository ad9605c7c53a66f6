"""Pixel ranges from a generator's last layer to its losses, files and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import command, load_generator, train
from fastcyclegan.errors import UserError
from fastcyclegan.models import DCGANGenerator, ResnetGenerator, UnetGenerator, build
from fastcyclegan.models.examples import write_pth
from fastcyclegan.models.output import to_pixels
from fastcyclegan.models.sampling import fixed_noise
from fastcyclegan.models.weights import load_network, save_network
from fastcyclegan.pixel_range import PIXEL_RANGES
from fastcyclegan.runs.evaluation import sliced_wasserstein
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from fastcyclegan.steps.losses import NAMES, gradient_penalty, l1_loss
from fastcyclegan.translation import Translator
from test_cyclegan import SIZE, images, make_networks
from test_evaluate import pixels
from tiny_runs import make_images, run_on_data

FORMULAS = {
    "tanh": np.tanh,
    "linear255": lambda x: (x + 1) * 127.5,
    "tanh255": lambda x: (np.tanh(x) + 1) * 127.5,
}


@pytest.mark.parametrize("pixel_range", PIXEL_RANGES)
def test_the_last_layer_is_its_formula(pixel_range):
    x = torch.linspace(-3, 3, 48, dtype=torch.float64).view(1, 3, 4, 4)
    wanted = FORMULAS[pixel_range](x.numpy())
    np.testing.assert_allclose(to_pixels(x, pixel_range).numpy(), wanted, rtol=1e-14, atol=1e-13)
    narrow = to_pixels(x.bfloat16(), pixel_range)
    assert narrow.dtype == torch.bfloat16
    # one rounding of the result beside that of the input
    wanted = FORMULAS[pixel_range](x.bfloat16().double().numpy())
    np.testing.assert_allclose(narrow.double().numpy(), wanted, rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize("cls", [ResnetGenerator, UnetGenerator])
def test_a_network_differs_between_ranges_in_nothing_else(cls):
    """tanh255 of bytes with the weights of tanh: IN behind the first layer takes out the scale."""
    nets = {name: cls(ngf=2, pixel_range=name).double() for name in PIXEL_RANGES}
    for net in nets.values():
        net.load_state_dict(nets["tanh"].state_dict())
    x = torch.rand(1, 3, 256, 256, dtype=torch.float64)
    outputs = {name: net(x) for name, net in nets.items()}
    torch.testing.assert_close(outputs["tanh255"], (outputs["tanh"] + 1) * 127.5)
    torch.testing.assert_close(torch.tanh(outputs["linear255"] / 127.5 - 1), outputs["tanh"])


def test_losses_mean_the_same_in_every_range():
    a, b = torch.rand(2, 2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    raw = [(x + 1) * 127.5 for x in (a, b)]
    torch.testing.assert_close(l1_loss(*raw, "linear255"), l1_loss(a, b))
    share, w = torch.tensor([0.2, 0.9]), torch.randn(3, 8, 8, dtype=torch.float64)
    wanted = gradient_penalty(lambda x: (x * w).square(), a, b, share)
    found = gradient_penalty(lambda x: ((x / 127.5 - 1) * w).square(), *raw, share, "tanh255")
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("pixel_range", ["linear255", "tanh255"])
def test_fused_equals_reference_on_raw_pixels(pixel_range):
    rows = []
    for implementation in ("reference", "fused"):
        settings = Settings(dtype=torch.float64, pool_size=2, pixel_range=pixel_range)
        networks = make_networks(torch.float64)
        for name in ("G_A", "G_B"):
            arch = networks[name].arch | {"pixel_range": pixel_range}
            state, networks[name] = networks[name].state_dict(), build(arch).double()
            networks[name].load_state_dict(state)
        model = CycleGAN(networks, settings, (3, SIZE, SIZE), (3, SIZE, SIZE))
        real = [((images(1, 0, domain) + 1) * 127.5).round() for domain in (0, 1)]
        rows.append([STEPS[implementation](model, *real, torch.arange(1)) for _ in range(3)])
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-9, atol=1e-12)
    cycle = rows[0][0][NAMES.index("cycle_A")]
    assert 1 < cycle < 20  # ten times a mean difference of at most 2


@pytest.mark.parametrize("pixel_range", PIXEL_RANGES)
def test_files_keep_the_range_and_translate_follows_it(pixel_range, tmp_path):
    net = ResnetGenerator(ngf=4, n_blocks=1, pixel_range=pixel_range)
    save_network(tmp_path / "G.safetensors", net, step=1)
    back, metadata = load_network(tmp_path / "G.safetensors", pixel_range)
    assert back.pixel_range == metadata["pixel_range"] == pixel_range
    photo = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    x = torch.from_numpy(photo)[None].permute(0, 3, 1, 2).float()
    with torch.no_grad():
        y = net(x / 127.5 - 1 if pixel_range == "tanh" else x)[0].permute(1, 2, 0).numpy()
    y = (y + 1) * 127.5 if pixel_range == "tanh" else y
    written = Translator(back.eval())(photo[None])[0]
    assert np.abs(written - np.clip(y, 0, 255)).max() <= 0.5 + 1e-3
    other = next(name for name in PIXEL_RANGES if name != pixel_range)
    with pytest.raises(UserError, match=f"--pixel_range {other}: .* has {pixel_range}"):
        load_network(tmp_path / "G.safetensors", other)


NETS = {
    "resnet": lambda **words: ResnetGenerator(ngf=4, n_blocks=1, **words),
    "unet": lambda **words: UnetGenerator(ngf=2, num_downs=5, **words),
}


@pytest.mark.parametrize("kind", NETS)
def test_a_pth_is_of_the_range_that_is_said(tmp_path, kind):
    """In linear255 other programs have nothing behind the last convolution, ours has a scale."""
    nets = {name: NETS[kind](pixel_range=name).eval() for name in PIXEL_RANGES}
    last = nets["tanh"].last
    torch.nn.init.normal_(last.weight, 0.0, 20.0, torch.Generator().manual_seed(0))
    torch.nn.init.constant_(last.bias, 120.0)
    path = tmp_path / "latest_net_G_A.pth"
    torch.save(nets["tanh"].state_dict(), path)
    x = torch.rand(1, 3, 32, 32) * 255
    for name, net in nets.items():
        net.load_state_dict(nets["tanh"].state_dict())
        said = load_generator(path, pixel_range=name)
        assert said.pixel_range == name
        wanted = net(x) / 127.5 - 1 if name == "linear255" else net(x)
        # values of some hundreds in fp32, by way of a division and a multiplication
        torch.testing.assert_close(said(x), wanted, rtol=1e-5, atol=1e-3)
    assert load_generator(path).pixel_range == "tanh"


def test_a_dcgan_of_other_programs_is_not_read_in_linear255(tmp_path):
    """Its last convolution has no bias in which the middle of the range could be put."""
    write_pth(tmp_path / "netG.pth", DCGANGenerator(5, 2, 3, 16))
    with pytest.raises(UserError, match=r"--pixel_range linear255: .*netG.pth is a DCGAN, whose"):
        load_generator(tmp_path / "netG.pth", pixel_range="linear255")
    assert load_generator(tmp_path / "netG.pth", pixel_range="tanh255").pixel_range == "tanh255"


def test_a_file_from_before_the_ranges_is_tanh(tmp_path):
    net = ResnetGenerator(ngf=4, n_blocks=1)
    del net.arch["pixel_range"], net.arch["residual_relu"]
    save_network(tmp_path / "G.safetensors", net, step=1)
    back, _ = load_network(tmp_path / "G.safetensors")
    assert back.pixel_range == "tanh" and not back.residual_relu


def test_previews_of_raw_pixels_show_the_bytes(tmp_path):
    from fastcyclegan.runs.previews import save_preview

    x = torch.tensor([10.0, 200.4, -3.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    save_preview(tmp_path / "p.png", {"x": x}, "linear255")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.getpixel((picture.width - 10, 10)) == (10, 200, 0)


def as_bytes(y: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) of a raw range as they are to be written."""
    return y.detach().round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@pytest.mark.parametrize("pixel_range", ["linear255", "tanh255"])
def test_scores_during_a_training_are_of_the_bytes(here, pixel_range):
    """Beside networks loaded from the run, whose outputs become bytes here."""
    for seed, domain in enumerate("AB"):
        make_images(here / f"data/test{domain}", 3, (32, 32), seed=10 + seed)
    words = ["--pixel_range", pixel_range, "--steps", "2", "--eval_every", "2", "--lr", "0.01"]
    assert run_on_data(*words) == 0
    root = here / "checkpoints/0001"
    [row] = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "eval"]
    for direction, source, target in (("AtoB", "A", "B"), ("BtoA", "B", "A")):
        x = pixels(here / f"data/test{source}").permute(0, 3, 1, 2).float()
        made = as_bytes(load_generator(root, direction)(x))
        truth = sliced_wasserstein(made, pixels(here / f"data/test{target}"))
        assert row[f"swd_{target}"] == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("pixel_range", ["linear255", "tanh255"])
def test_scores_and_previews_of_a_dcgan_are_of_the_bytes(here, pixel_range):
    """At step 2 the scores of --eval_every, at step 4 those of the preview, and its pictures."""
    make_images(here / "small", 6, (16, 16))
    words = "--model dcgan --dataroot small --device cpu --precision fp32 --crop_size 16 --ngf 4"
    words += " --ndf 4 --nz 6 --batch_size 4 --steps 4 --eval_every 2 --save_every_steps 2"
    words += f" --display_freq 1000 --lr 0.01 --seed 3 --pixel_range {pixel_range}"
    assert command.run(train.main, words.split()) == 0
    root = here / "checkpoints/0001"
    rows = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        net = load_generator(root / f"ckpt/step-0000000{row['step']}")
        fake = as_bytes(net(fixed_noise(3, 64, 6)[..., None, None]))
        truth = sliced_wasserstein(fake[:6], pixels(here / "small"))
        assert row["swd"] == pytest.approx(truth, rel=1e-3)
    with Image.open(root / "previews/step-00000004.png") as picture:
        found = np.asarray(picture).astype(int)
    below = found.shape[0] // 9
    for i in (0, 9, 63):
        top, left = (i // 8 + 1) * below, found.shape[1] + (i % 8 - 8) * 18
        assert np.abs(found[top : top + 16, left : left + 16] - fake[i].numpy()).max() <= 1
