"""DCGAN through the train command: what a run leaves, foreign weights, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import command, load_generator, sample, train
from fastcyclegan.models import DCGANDiscriminator, DCGANGenerator
from fastcyclegan.models.examples import write_pth
from fastcyclegan.models.sampling import fixed_noise
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps import dcgan
from fastcyclegan.steps.dcgan import NAMES
from fastcyclegan.systems import dcgan as systems_dcgan
from tiny_runs import final_state, make_images

TINY = [
    *("--model", "dcgan", "--device", "cpu", "--precision", "fp32", "--ngf", "4", "--ndf", "4"),
    *("--nz", "6", "--crop_size", "16", "--batch_size", "4"),
    *("--print_freq", "8", "--display_freq", "16"),
]
# without what weights in files decide
PLAIN = [*TINY[:6], *TINY[14:]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten small colour images in ``data``, the working folder above it."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "data", 10, size=(24, 30))
    return tmp_path


def run(*words: str) -> int:
    return command.run(train.main, [*TINY, "--dataroot", "data", *words])


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_leaves_what_interfaces_promise(folder, capsys):
    assert run("--steps", "6") == 0
    root = folder / "checkpoints/0001"
    rows = read_metrics(root / "metrics.jsonl")
    losses = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in losses] == [2, 4, 6]
    assert all(np.isfinite(row[name]) for row in losses for name in NAMES)
    assert all(0 < row[name] < 1 for row in losses for name in ("D_x", "D_G_z1", "D_G_z2"))
    assert all(row["images"] == 4 * row["step"] and row["lr_G"] == 0.0002 for row in losses)
    scores = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in scores] == [4, 6]
    assert all(row["swd"] > 0 and row["diversity"] > 0 for row in scores)
    assert sorted(p.stem for p in (root / "weights").iterdir()) == ["D", "G"]
    with Image.open(root / "previews/step-00000006.png") as picture:
        assert picture.height == 9 * (picture.height // 9)
    net = load_generator(root)
    assert net.arch == DCGANGenerator(6, 4, 3, 16).arch
    out = capsys.readouterr().out
    assert "10 images" in out and "DCGAN 16x16 ngf 4, fp32 on cpu, 6 steps of batch 4" in out
    assert "sample with: python -m fastcyclegan.sample --weights checkpoints/0001" in out
    settled = json.loads((root / "config.json").read_text())["train"]
    assert settled["preprocess"] == "resize_and_center_crop" and settled["load_size"] == 16
    assert settled["n_epochs"] == 25 and settled["n_epochs_decay"] == 0


def without_time(root: Path) -> list[dict]:
    rows = read_metrics(root / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "img_per_s"} for row in rows]


def test_both_implementations_train_alike(folder):
    for impl in ("fused", "reference"):
        assert run("--impl", impl, "--name", impl, "--steps", "2") == 0
    rows = (without_time(folder / "checkpoints" / impl)[0] for impl in ("fused", "reference"))
    first, second = ([row[name] for name in NAMES] for row in rows)
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_grey_and_transparent_images(folder, channels, mode):
    for path in (folder / "data").iterdir():
        Image.open(path).convert(mode).save(path)
    assert run("--output_nc", str(channels), "--steps", "2") == 0
    assert load_generator(folder / "checkpoints/0001").arch["output_nc"] == channels


def test_transparency_is_trained_on_and_written(folder, monkeypatch):
    """As the fourth channel, as it is in the files; toy images have none."""
    rng, alphas = np.random.default_rng(0), []
    for path in (folder / "data").iterdir():
        image = Image.open(path).resize((16, 16)).convert("RGBA")
        alphas.append(rng.integers(0, 256, (16, 16), dtype=np.uint8))
        image.putalpha(Image.fromarray(alphas[-1]))
        image.save(path)
    seen, fused = [], dcgan.STEPS["fused"]

    def watched(model, real, number):
        seen.extend(real[:, 3].clone())
        return fused(model, real, number)

    monkeypatch.setitem(dcgan.STEPS, "fused", watched)
    assert run("--output_nc", "4", "--steps", "2") == 0
    given = torch.from_numpy(np.stack(alphas)).float() / 127.5 - 1
    assert len(seen) == 8
    assert all((given - alpha).abs().amax((1, 2)).min() < 1e-6 for alpha in seen)
    words = ["--weights", "checkpoints/0001", "--output", "g.png", "--num", "1", "--device", "cpu"]
    assert command.run(sample.main, words) == 0
    with Image.open("g.png") as picture:
        assert picture.mode == "RGBA" and picture.getchannel("A").getextrema()[1] < 255


def test_toy_images_have_no_transparency(folder, capsys):
    assert command.run(train.main, [*TINY, "--output_nc", "4", "--steps", "1"]) == 2
    err = capsys.readouterr().err
    assert "--output_nc 4: the toy images have no transparency; give a --dataroot" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--ema", "0.5"]])
def test_previews_are_of_fixed_noise_and_of_the_average(folder, monkeypatch, words):
    noise, makers, generate = [], [], systems_dcgan.generate

    def watched(net, z):
        noise.append(z.clone())
        makers.append({key: value.clone() for key, value in net.state_dict().items()})
        return generate(net, z)

    monkeypatch.setattr(systems_dcgan, "generate", watched)
    assert run("--steps", "12", "--seed", "5", *words) == 0
    assert len(noise) == 3 and all(torch.equal(z, fixed_noise(5, 256, 6)) for z in noise)
    weights, _, _ = final_state(folder / "checkpoints/0001")
    assert same(makers[-1], weights["G_ema" if words else "G"])
    assert not words or not same(makers[-1], weights["G"])


def test_transparency_lies_on_white_in_three_channels(folder):
    for path in (folder / "data").iterdir():
        image = Image.open(path).convert("RGBA")
        image.putalpha(0)
        image.save(path)
    assert run("--steps", "2") == 0
    with Image.open(folder / "checkpoints/0001/previews/step-00000002.png") as picture:
        assert picture.getpixel((picture.width - 3, 1)) == (255, 255, 255)


def test_weights_of_pytorch_examples_begin_a_training(folder, capsys):
    theirs = folder / "theirs"
    theirs.mkdir()
    G, D = DCGANGenerator(9, 5, 3, 32), DCGANDiscriminator(3, 6, 32)
    write_pth(theirs / "netG_epoch_7.pth", G)
    write_pth(theirs / "netD_epoch_7.pth", D)
    words = ["--init_from", "theirs", "--lr", "1e-12", "--steps", "1"]
    assert command.run(train.main, [*PLAIN, "--dataroot", "data", *words]) == 0
    trained, _, _ = final_state(folder / "checkpoints/0001")
    for name, net in (("G", G), ("D", D)):
        for key, value in net.named_parameters():
            assert torch.allclose(trained[name][key], value, rtol=0, atol=1e-10)
    assert "starting from theirs: nz 9, ngf 5, output_nc 3, crop_size 32" in capsys.readouterr().out
    assert run(*words) == 2
    assert "--nz 6: theirs/netG_epoch_7.pth has 9; leave it out" in capsys.readouterr().err
    (theirs / "netD_epoch_7.pth").unlink()
    assert command.run(train.main, [*PLAIN, "--dataroot", "data", *words]) == 2
    assert "theirs has no weights/D.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--crop_size 100",
            "a DCGAN makes images of 16, 32, 64, 128 or 256 pixels",
        ),
        ("--preprocess none", "--preprocess none: a DCGAN needs images of one size"),
        ("--load_size 12", "--load_size 12 is smaller than --crop_size 16"),
        ("--lambda_A 5", "--lambda_A: --model dcgan has none; leave it out"),
        ("--netG unet_256", "--netG: --model dcgan has none; leave it out"),
        ("--lr_policy plateau", "--lr_policy plateau: no loss of a DCGAN is meant to fall"),
        ("--preset small", "--preset small is for --model cycle_gan, not dcgan"),
        ("--output_nc 2", "--output_nc 2: not one of 1, 3, 4"),
        ("--ema 1", "--ema 1.0: must be at most"),
        ("--init_from nowhere", "nowhere has no weights/G.safetensors"),
        ("--dataroot nowhere", "nowhere"),
        ("--max_bad 0 --min_size 25", "10 of 10 images in data cannot be used"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, words, said):
    assert run("--steps", "2", *words.split()) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (folder / "checkpoints").exists()


def test_grey_images_for_a_network_of_colours(folder, capsys):
    for path in (folder / "data").iterdir():
        Image.open(path).convert("L").save(path)
    assert run("--steps", "2") == 2
    assert "every image in data is grey, and --output_nc 3 is for colour" in capsys.readouterr().err


def test_cyclegan_has_no_noise(folder, capsys):
    words = ["--model", "cycle_gan", "--nz", "5", "--dataroot", "data"]
    assert command.run(train.main, words) == 2
    assert "--nz: --model cycle_gan has none" in capsys.readouterr().err


def test_the_preset_is_the_model(folder, capsys):
    words = [w for w in TINY if w not in ("--model", "dcgan")]
    assert (
        command.run(train.main, [*words, "--preset", "dcgan", "--dataroot", "data", "--steps", "1"])
        == 0
    )
    assert "DCGAN 16x16" in capsys.readouterr().out


@pytest.mark.parametrize("pixels", ["linear255", "tanh255"])
def test_other_pixel_ranges_train_and_are_sampled(folder, pixels):
    assert run("--pixel_range", pixels, "--steps", "4") == 0
    net = load_generator(folder / "checkpoints/0001")
    assert net.pixel_range == pixels
    with torch.no_grad():
        images = net(torch.randn(4, 6, 1, 1))
    assert 60 < images.mean() < 190  # it begins in the middle of 0 .. 255
    rows = read_metrics(folder / "checkpoints/0001/metrics.jsonl")
    assert rows[-1]["swd"] < 1  # in units of [-1, 1]


@pytest.mark.parametrize("step", ["fused", "reference"])
def test_a_step_that_is_not_finite_changes_nothing(folder, monkeypatch, step):
    """The gate, where G's loss alone is spoilt: D, which had moved by then, is put back as well."""
    runs = []
    for name, broken in (("broken", True), ("short", False)):
        loss = dcgan.gan_loss
        calls = []

        def spoilt(logits, real, mode, loss=loss, calls=calls, broken=broken):
            calls.append(1)
            # three losses per step, the last one that of G; the third step is spoilt
            return loss(logits, real, mode) * (torch.nan if broken and len(calls) == 9 else 1)

        monkeypatch.setattr(dcgan, "gan_loss", spoilt)
        words = ["--impl", step, "--ema", "0.9", "--name", name, "--precision", "bf16"]
        assert run(*words, "--steps", "3" if broken else "2") == 0
        monkeypatch.setattr(dcgan, "gan_loss", loss)
        runs.append(final_state(folder / "checkpoints" / name))
    (weights, tensors, _), (weights2, tensors2, _) = runs
    assert all(same(weights[name], weights2[name]) for name in ("G", "D", "G_ema"))
    moments = [key for key in tensors if "/exp_avg" in key or key.endswith("/step")]
    assert moments and all(torch.equal(tensors[key], tensors2[key]) for key in moments)
    events = read_metrics(folder / "checkpoints/broken/metrics.jsonl")
    skipped = [row for row in events if row.get("event") == "skipped"]
    assert len(skipped) == 1 and skipped[0]["step"] == 3 and len(skipped[0]["names"]["real"]) == 4


def scores(name: str) -> tuple[float, float, str]:
    rows = read_metrics(f"checkpoints/{name}/metrics.jsonl")
    last = [row for row in rows if row["kind"] == "eval"][-1]
    return last["swd"], last["diversity"], last


def test_toy_images_are_learnt_a_little(folder, capsys):
    """Seconds of training: nearer to the held-out images than at the start, and not collapsed."""
    words = ["--model", "dcgan", "--device", "cpu", "--crop_size", "16", "--ngf", "16"]
    assert command.run(train.main, [*words, "--ndf", "16", "--steps", "200", "--lr", "1e-3"]) == 0
    out = capsys.readouterr().out
    assert "using --preset dcgan_small" in out and "1024 toy images" in out
    distance, diversity, _ = scores("0001")
    at_start = float(out.split("at the start ")[1].split(";")[0])
    assert distance < 0.7 * at_start and diversity > 0.25


@pytest.mark.slow
def test_toy_images_are_learnt(folder, capsys):
    """The command without data: half of the untrained distance, half of the real variety."""
    assert command.run(train.main, ["--model", "dcgan", "--device", "cpu"]) == 0
    distance, diversity, _ = scores("0001")
    at_start = float(capsys.readouterr().out.split("at the start ")[1].split(";")[0])
    assert distance <= 0.5 * at_start and diversity >= 0.5


@pytest.mark.cuda
@pytest.mark.parametrize("words", ["", "--precision bf16 --ema 0.9 --compile"])
def test_on_a_gpu_a_run_is_the_same_twice_and_captured_or_not(folder, words):
    """Bit for bit, as its products of matrices are too."""
    words = ["--device", "cuda", "--deterministic", "--steps", "9", *words.split()]
    for name, graph in (("plain", "off"), ("once", "on"), ("again", "on")):
        assert run("--name", name, "--cuda_graph", graph, *words) == 0
    plain, *others = (final_state(folder / "checkpoints" / n) for n in ("plain", "once", "again"))
    for found in others:
        assert same(found[1], plain[1])
        assert all(same(found[0][name], plain[0][name]) for name in plain[0])
