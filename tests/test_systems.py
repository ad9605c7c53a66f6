"""Every system from its preset to its files: it trains, resumes, translates, refuses clearly."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import command, load_generator, train, translate
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.images import read_image
from fastcyclegan.models import JohnsonGenerator, ResnetGenerator, build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.weights import load_network
from fastcyclegan.options import parse_explicit
from fastcyclegan.pixel_range import PIXEL_RANGES
from fastcyclegan.presets import PRESETS, apply_preset
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps import cyclegan, sequential
from fastcyclegan.steps.assembly import architectures
from fastcyclegan.steps.cyclegan import Settings
from fastcyclegan.steps.losses import NAMES
from test_cyclegan import SIZE, make_networks
from tiny_runs import final_state, make_images, run_on_data

CYCLEGANS = [name for name, preset in PRESETS.items() if preset.get("model") is None]
# What makes a preset small enough for a test without making it another system.
SIZES = "--device cpu --precision fp32 --ngf 4 --ndf 4 --load_size 52 --crop_size 48 --pool_size 2"
FREQUENCIES = "--print_freq 2 --display_freq 100 --dataroot data --flip"


def run(preset: str, *words: str) -> int:
    shortened = [*SIZES.split(), *FREQUENCIES.split(), "--preset", preset]
    return command.run(train.main, [*shortened, *words])


def convolution(inside: int, outside: int, side: int) -> int:
    return inside * outside * side**2 + outside


def resnet(ngf: int, blocks: int) -> int:
    """Two 7x7 ends, two ways down and up, two 3x3 convolutions in each block, all with a bias."""
    ends = convolution(3, ngf, 7) + convolution(ngf, 3, 7)
    ways = sum(convolution(a * ngf, b * ngf, 3) for a, b in ((1, 2), (2, 4), (4, 2), (2, 1)))
    return ends + ways + 2 * blocks * convolution(4 * ngf, 4 * ngf, 3)


def patchgan(ndf: int) -> int:
    widths = [3, ndf, 2 * ndf, 4 * ndf, 8 * ndf, 1]
    return sum(convolution(a, b, 4) for a, b in pairwise(widths))


@pytest.mark.parametrize(
    ("preset", "generator", "discriminator"),
    [
        ("paper", resnet(64, 9), patchgan(64)),
        ("paper128", resnet(64, 6), patchgan(64)),
        ("article", resnet(64, 6), patchgan(64)),
        ("johnson", 1_679_235, patchgan(64)),  # derived in test_johnson.py
        ("small", resnet(32, 6), patchgan(32)),
    ],
)
def test_parameters_are_those_of_the_derivation(preset, generator, discriminator):
    config, explicit = parse_explicit(TrainConfig, "train", "", ["--preset", preset])
    with torch.device("meta"):
        found = architectures(apply_preset(config, explicit))
        nets = {name: build(arch) for name, arch in found.items()}
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    wanted = {"G_A": generator, "G_B": generator, "D_A": discriminator, "D_B": discriminator}
    assert counts == wanted


def test_the_articles_encoder_ends_in_64_by_64_by_256():
    config, explicit = parse_explicit(TrainConfig, "train", "", ["--preset", "article"])
    seen = []
    with torch.device("meta"):
        net = build(architectures(apply_preset(config, explicit))["G_A"])
        block = net.PIECES["residual_block"]
        watched = {"residual_block": lambda x, *rest: seen.append(x.shape) or block(x, *rest)}
        net.pieces = net.PIECES | watched
        y = net.compute(torch.zeros(1, 3, 256, 256), net.weights_in(torch.float32))
    assert seen == [(1, 256, 64, 64)] * 6 and y.shape == (1, 3, 256, 256)


def test_residual_relu_stands_behind_each_sum():
    """Of the trunk, with the same weights and input; and the option reaches the network."""
    config, explicit = parse_explicit(TrainConfig, "train", "", ["--residual_relu", "--ngf", "2"])
    arch = architectures(apply_preset(config, explicit))["G_A"]
    net, plain = build(arch), build(arch | {"residual_relu": False})
    assert arch["residual_relu"] and not plain.residual_relu
    init_weights(net, 0.2, torch.Generator().manual_seed(3))
    plain.load_state_dict(net.state_dict())
    trunks = {}
    for name, network in (("relu", net), ("plain", plain)):
        seen = trunks.setdefault(name, [])

        def decode(x, *rest, seen=seen, plainly=network.PIECES["decode"]):
            seen.append(x)
            return plainly(x, *rest)

        network.pieces = {**network.PIECES, "decode": decode}
        network.compute(torch.rand(1, 3, 32, 32), network.weights_in(torch.float32))
    assert trunks["relu"][0].min() == 0 and trunks["plain"][0].min() < 0


@pytest.mark.parametrize("preset", CYCLEGANS)
def test_each_system_trains(here, preset):
    assert run(preset, "--no_fit_schedule", "--steps", "2") == 0
    row = read_metrics(here / "checkpoints/0001/metrics.jsonl")[-1]
    assert row["step"] == 2 and all(np.isfinite(row[name]) for name in NAMES)
    assert (row["idt_A"] > 0) is (preset != "article")
    assert (here / "checkpoints/0001/previews/step-00000002.png").is_file()
    assert load_generator(here / "checkpoints/0001").arch["ngf"] == 4


@pytest.mark.parametrize(
    ("updates", "generator", "pixel_range"),
    [
        ("sequential", ResnetGenerator(ngf=8, n_blocks=1), "tanh"),
        ("joint", JohnsonGenerator(ngf=8, padding="each"), "tanh255"),
        ("joint", ResnetGenerator(ngf=8, n_blocks=1), "linear255"),
    ],
)
def test_each_system_learns(updates, generator, pixel_range):
    """The cycles of one pair of images begin to close: their losses fall by 40 % in 50 steps."""
    nets = make_networks(torch.float32)
    source = torch.Generator().manual_seed(3)
    for name in nets:
        if name.startswith("G"):
            nets[name] = build(generator.arch | {"pixel_range": pixel_range})
        init_weights(nets[name], 0.02, source)
    settings = Settings(lr=0.002, pool_size=2, pixel_range=pixel_range)
    steps, model = {
        "joint": (cyclegan.STEPS, cyclegan.CycleGAN),
        "sequential": (sequential.STEPS, sequential.SequentialCycleGAN),
    }[updates]
    model = model(nets, settings, (3, SIZE, SIZE), (3, SIZE, SIZE))
    real = [smooth(domain, pixel_range) for domain in (0, 1)]
    rows = [steps["fused"](model, *real, torch.arange(1) + step) for step in range(50)]
    both = [NAMES.index("cycle_A"), NAMES.index("cycle_B")]
    assert rows[-1][both].sum() < 0.6 * rows[0][both].sum()


def smooth(domain: int, pixel_range: str) -> torch.Tensor:
    """A picture of few waves, (1, 3, SIZE, SIZE)."""
    at = torch.linspace(0, 3, SIZE)
    waves = [torch.sin((c + 1 + domain) * at)[:, None] * torch.cos(at + c) for c in range(3)]
    x = torch.stack(waves)[None].contiguous(memory_format=torch.channels_last)
    return x if pixel_range == "tanh" else (x + 1) * 127.5


def test_one_optimiser_of_the_article_at_a_time_reaches_the_checkpoint(here):
    assert run("article", "--steps", "1") == 0
    _, tensors, _ = final_state(here / "checkpoints/0001")
    owners = {key.split("/")[0] for key in tensors if key.endswith("/exp_avg")}
    assert owners == {"G_A", "G_B", "D_A", "D_B"}
    row = read_metrics(here / "checkpoints/0001/metrics.jsonl")[0]
    assert row["idt_A"] == row["idt_B"] == 0.0 and row["cycle_A"] > 0 and row["D_B"] > 0


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_updates_reach_the_training(here, impl):
    """Sequential updates are another run than joint ones, and both implementations agree."""
    rows = {}
    for updates in ("joint", "sequential"):
        words = ["--updates", updates, "--impl", impl, "--name", updates]
        assert run_on_data("--steps", "2", "--lambda_identity", "0", *words) == 0
        rows[updates] = read_metrics(here / f"checkpoints/{updates}/metrics.jsonl")[0]
    assert rows["joint"]["cycle_A"] != rows["sequential"]["cycle_A"]
    config = json.loads((here / "checkpoints/sequential/config.json").read_text())
    assert config["train"]["updates"] == "sequential"


@pytest.mark.parametrize("pixel_range", PIXEL_RANGES)
@pytest.mark.parametrize("netG", ["resnet_1blocks", "johnson", "unet_128"])
def test_pixel_ranges_go_through_the_whole_run(here, netG, pixel_range):
    """Training, files of all four networks, the preview, translate, and a run that starts there."""
    side = 128 if netG == "unet_128" else 48
    sizes = ["--crop_size", str(side), "--load_size", str(side)]
    words = ["--netG", netG, *sizes, "--ngf", "4", "--no_flip", "--lr", "1e-30"]
    assert run_on_data("--pixel_range", pixel_range, "--steps", "2", *words) == 0
    root = here / "checkpoints/0001"
    for name in ("G_A", "G_B", "D_A", "D_B"):
        assert load_network(root / f"weights/{name}.safetensors")[1]["pixel_range"] == pixel_range
    rows = read_metrics(root / "metrics.jsonl")
    # images of random bytes: ten times a mean difference between 0.3 and 1.2, in any range; but
    # raw pixels go past a U-Net's first layer, which has no norm, to an output without an end
    high = 25 if (netG, pixel_range) == ("unet_128", "linear255") else 12
    assert 3 < rows[0]["cycle_A"] < high and 1 < rows[0]["idt_B"] < high / 2
    photo, net = next(Path("data/trainA").iterdir()), load_generator(root)
    with Image.open(root / "previews/step-00000002.png") as picture:
        real, fake = (np.asarray(picture)[top : top + side] for top in (0, side + 2))
    watched = np.asarray(Image.open(photo).resize((side, side), Image.BICUBIC))
    left = _left_of(watched, real)
    assert np.abs(fake[:, left : left + side] - _through(net, watched)).max() < 0.51
    words = ["--weights", str(root), "--input", str(photo), "--output", "out.png"]
    assert command.run(translate.main, words) == 0
    taken = {"resnet_1blocks": (40, 44), "johnson": (44, 44), "unet_128": (128, 128)}[netG]
    image = read_image(photo, 3)
    margins = [(0, to - size) for to, size in zip(taken, image.shape[:2], strict=True)]
    y = _through(net, np.pad(image, (*margins, (0, 0)), mode="reflect"))[:40, :44]
    # half a level, and what the fast way of fp32 may differ
    assert np.abs(read_image("out.png", 3) - y).max() < 0.51
    words = ["--dataroot", "data", "--device", "cpu", *sizes, "--name", "next", "--steps", "1"]
    assert command.run(train.main, [*words, "--init_from", str(root)]) == 0
    config = json.loads((here / "checkpoints/next/config.json").read_text())["train"]
    assert (config["pixel_range"], config["netG"]) == (pixel_range, netG)


def _left_of(image: np.ndarray, strip: np.ndarray) -> int:
    """Where ``image`` begins in ``strip``, which must hold it."""
    places = range(strip.shape[1] - image.shape[1] + 1)
    return next(x for x in places if np.array_equal(strip[:, x : x + image.shape[1]], image))


@torch.no_grad()
def _through(net: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Bytes (H, W, C) through a network of any range: what is to be rounded to bytes."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    x = x / 127.5 - 1 if net.pixel_range == "tanh" else x
    y = net(x)[0].permute(1, 2, 0).numpy()
    return ((y + 1) * 127.5 if net.pixel_range == "tanh" else y).clip(0, 255)


def bad_input(here: Path) -> dict[str, tuple[list[str], str]]:
    """Case: the words, and what the one line must say."""
    for domain in "AB":
        make_images(here / f"grey/train{domain}", 2)
        for path in (here / f"grey/train{domain}").iterdir():
            Image.open(path).convert("L").save(path)
        make_images(here / f"little/train{domain}", 2, (40, 48))
    johnson = ["--netG", "johnson", "--crop_size"]
    whole = ["--preprocess", "none", "--pool_size", "0"]
    run_dir, other = "checkpoints/0001", ["--pixel_range", "linear255"]
    return {
        "grey": (["--dataroot", "grey"], "every image of domain A is grey, and --input_nc 3"),
        "grey B": (["--dataroot", "grey", "--input_nc", "1", "--lambda_identity", "0"],
                   "domain B is grey, and --output_nc 3 is for colour: use --output_nc 1"),
        "no larger than the padding": (["--dataroot", "data", *johnson, "32"],
                                       "--crop_size 32: --netG johnson with --johnson_padding"),
        "a whole image neither": (["--dataroot", "little", *johnson, "44", "--load_size", "44",
                                   *whole], "48x40 pixels; --netG johnson"),
        "no such preset": (["--dataroot", "data", "--preset", "papers"], "did you mean paper?"),
        "contradiction": (["--dataroot", "data", "--preset", "johnson", "--upsample", "resize"],
                          "--upsample resize: johnson has none"),
        "other range": (["--dataroot", "data", "--init_from", run_dir, *other],
                        "linear255: checkpoints/0001/weights/G_A.safetensors has tanh"),
        "ranges mixed": (["--dataroot", "data", "--init_from", "mixed"],
                         "mixed/G_B.safetensors has pixel_range linear255, G_B needs tanh"),
    }  # fmt: skip


def mixed_ranges(here: Path) -> None:
    """A folder whose G_B is of another range than the rest."""
    for name, words in (("0001", []), ("0002", ["--pixel_range", "linear255"])):
        assert run_on_data("--steps", "1", *words) == 0
        assert (here / "checkpoints" / name).is_dir()
    (here / "mixed").mkdir()
    for path in (here / "checkpoints/0001/weights").iterdir():
        (here / "mixed" / path.name).write_bytes(path.read_bytes())
    strange = here / "checkpoints/0002/weights/G_B.safetensors"
    (here / "mixed/G_B.safetensors").write_bytes(strange.read_bytes())


def test_bad_input_gives_one_line_code_2_and_writes_nothing(here, capsys):
    mixed_ranges(here)
    cases = bad_input(here)
    before = sorted(str(p) for p in here.rglob("*"))
    for case, (words, said) in cases.items():
        capsys.readouterr()
        assert command.run(train.main, ["--device", "cpu", "--steps", "1", "--load_size", "64",
                                        "--crop_size", "32", *words]) == 2, case  # fmt: skip
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, case
        assert said in captured.err, (case, captured.err)
        assert sorted(str(p) for p in here.rglob("*")) == before, case


def test_translate_refuses_weights_of_another_range(here, capsys):
    assert run_on_data("--steps", "1", "--pixel_range", "tanh255") == 0
    words = ["--weights", "checkpoints/0001", "--input", "data/trainA", "--output", "out"]
    assert command.run(translate.main, [*words, "--pixel_range", "tanh"]) == 2
    assert "has tanh255; leave it out" in capsys.readouterr().err
    assert command.run(translate.main, [*words, "--pixel_range", "tanh255"]) == 0


def test_grey_images_train_a_grey_network_and_some_among_colours_are_fine(here):
    for domain in "AB":
        for path in sorted((here / f"data/train{domain}").iterdir())[:2]:
            Image.open(path).convert("L").save(path)
    assert run_on_data("--steps", "1") == 0
    make_images(here / "grey/trainA", 2)
    for path in (here / "grey/trainA").iterdir():
        Image.open(path).convert("L").save(path)
    words = ["--dataroot_A", "grey/trainA", "--dataroot_B", "data/trainB", "--input_nc", "1"]
    words += ["--device", "cpu", "--netG", "resnet_1blocks", "--ngf", "2", "--ndf", "2"]
    words += ["--load_size", "32", "--crop_size", "32", "--lambda_identity", "0", "--steps", "1"]
    assert command.run(train.main, words) == 0
