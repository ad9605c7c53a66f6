"""python -m fastcyclegan.evaluate: folders and generators are scored, bad input is one line."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import command, evaluate
from fastcyclegan.data import decode as decode_module
from fastcyclegan.data.images import from_uint8, to_uint8
from fastcyclegan.models import DCGANGenerator, ResnetGenerator
from fastcyclegan.models.examples import write_pth
from fastcyclegan.models.sampling import fixed_noise, generate
from fastcyclegan.models.weights import load_generator, save_network
from fastcyclegan.runs.evaluation import pair_scores, sliced_wasserstein
from fastcyclegan.runs.features import BUILT
from fastcyclegan.scores import ARCHITECTURES
from house_rules import ROOT
from test_features import Maps, Tiny, script
from tiny_runs import make_images


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "fake", 5, (16, 20), seed=1)
    make_images(tmp_path / "real", 7, (16, 20), seed=2)
    make_images(tmp_path / "truth", 5, (16, 20), seed=3)
    return tmp_path


def run(words: str) -> int:
    return command.run(evaluate.main, [*words.split(), "--device", "cpu"])


def result(capsys, words: str) -> dict:
    assert run(f"{words} --json") == 0
    return json.loads(capsys.readouterr().out)


def pixels(folder) -> torch.Tensor:
    found = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(found))


def test_folders(folders, capsys):
    script(folders / "tiny.pt", Tiny())
    fake, real, truth = (pixels(folders / name) for name in ("fake", "real", "truth"))
    told = result(capsys, "--fake fake --real real --truth truth --features tiny.pt")
    assert told["images"] == 5 and told["real_images"] == 7 and told["size"] == "20x16"
    scores = told["scores"]
    assert list(scores) == ["swd", "fid", "kid", "kid_std", "psnr", "ssim", "l1"]
    assert scores["swd"] == sliced_wasserstein(fake, real)
    assert pair_scores(fake, truth) == {name: scores[name] for name in ("psnr", "ssim", "l1")}
    sha = hashlib.sha256((folders / "tiny.pt").read_bytes()).hexdigest()
    assert told["features"] == {"file": "tiny.pt", "kind": "TorchScript", "sha256": sha}


def test_what_people_read(folders, capsys):
    script(folders / "tiny.pt", Tiny())
    assert run("--fake fake --real real --truth fake --features tiny.pt") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "5 images of 20x16 pixels beside 7 real ones"
    assert [line.split()[0] for line in out[1:]] == [
        *("swd", "fid", "kid", "kid_std", "psnr", "ssim", "l1", "features", "sha256")
    ]
    assert out[5].split()[1] == "inf" and len(out[-1].split()[1]) == 64
    assert result(capsys, "--fake fake --truth fake")["scores"]["psnr"] is None


def test_pairs_go_by_name_without_the_suffix(folders, capsys):
    before = result(capsys, "--fake fake --truth truth")["scores"]
    assert "swd" not in before
    (folders / "truth/a").mkdir()
    (folders / "fake/a").mkdir()
    for name, new in (("fake/0.png", "fake/a/9.bmp"), ("truth/0.png", "truth/a/9.png")):
        Image.open(folders / name).save(folders / new)
        (folders / name).unlink()
    after = result(capsys, "--fake fake --truth truth")["scores"]
    assert after == pytest.approx(before, rel=1e-12)
    # where the folders are sorted, 9.b comes before 9 in one and behind it in the other
    for name, new in (("1.png", "9.{}"), ("2.png", "9.b.png")):
        for folder, suffix in (("fake", "png"), ("truth", "PNG")):
            (folders / folder / name).rename(folders / folder / new.format(suffix))
    after = result(capsys, "--fake fake --truth truth")["scores"]
    assert after == pytest.approx(before, rel=1e-12)


def test_size_brings_all_images_to_one(folders, capsys):
    make_images(folders / "large", 3, (40, 60), seed=4)
    told = result(capsys, "--fake large --real fake --size 24")
    assert told["size"] == "24x24"
    cut = result(capsys, "--fake large --real fake --size 24 --preprocess resize_and_center_crop")
    assert cut["scores"] != told["scores"]


def test_a_translator_is_judged_as_its_translations_are(folders, capsys, monkeypatch):
    """In fp32 on the same 8-bit images; of a run that is the generator of --direction."""
    monkeypatch.setattr(evaluate, "BATCH", 2)
    torch.manual_seed(0)
    net = ResnetGenerator(ngf=4, n_blocks=1)
    (folders / "run").mkdir()
    save_network(folders / "run/G_B.safetensors", net, step=1)
    words = "--weights run --direction BtoA --input fake --real real --truth truth"
    told = result(capsys, words)
    with torch.no_grad():
        made = to_uint8(net.eval()(from_uint8(pixels(folders / "fake"))))
    truth = pair_scores(made, pixels(folders / "truth"))
    # rounding at .5 may fall on either side
    assert told["scores"]["l1"] == pytest.approx(truth["l1"], rel=1e-4)
    assert told["scores"]["ssim"] == pytest.approx(truth["ssim"], rel=1e-3)
    assert told["scores"]["swd"] > 0 and told["images"] == 5


def test_samples_of_a_dcgan(folders, capsys, monkeypatch):
    torch.manual_seed(0)
    save_network(folders / "G.safetensors", DCGANGenerator(ngf=4, nz=6, size=16), step=1)
    words = "--weights G.safetensors --real real --size 16 --seed 3"
    assert result(capsys, words)["images"] == 7
    monkeypatch.setattr(evaluate, "PIXELS", 3 * 16 * 16)
    told = result(capsys, f"{words} --num 4")
    net = load_generator(folders / "G.safetensors")
    made = to_uint8(generate(net, fixed_noise(3, 4, 6)))
    squares = [Image.open(p).resize((16, 16), Image.Resampling.BICUBIC)
               for p in sorted((folders / "real").iterdir())]  # fmt: skip
    real = torch.from_numpy(np.stack(list(map(np.asarray, squares))))
    truth = sliced_wasserstein(made, real)
    assert told["images"] == 4 and told["scores"]["swd"] == pytest.approx(truth, rel=1e-6)


def as_bytes(y: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) of a raw range as they are to be written."""
    return y.detach().round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@pytest.mark.parametrize("pixel_range", ["linear255", "tanh255"])
@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "pth"])
def test_raw_pixels_are_judged_as_they_are_written(folders, capsys, pixel_range, foreign):
    """Of both kinds of generator; a .pth is of the range that the flag says, and that is told."""
    torch.manual_seed(0)
    T = ResnetGenerator(ngf=4, n_blocks=1, pixel_range=pixel_range).eval()
    G = DCGANGenerator(ngf=4, nz=6, size=16, pixel_range=pixel_range).eval()
    flag = f"--pixel_range {pixel_range}" if foreign else ""
    for name, net in (("T", T), ("G", G)):
        if foreign:
            write_pth(folders / f"{name}.pth", net)
        else:
            save_network(folders / f"{name}.safetensors", net, step=1)
    suffix = "pth" if foreign else "safetensors"
    told = result(capsys, f"--weights T.{suffix} {flag} --input fake --truth truth")
    with torch.no_grad():
        if foreign and pixel_range == "linear255":  # there nothing is behind the last convolution
            T.last.weight /= 127.5
            T.last.bias.sub_(127.5).div_(127.5)
        made = as_bytes(T(pixels(folders / "fake").permute(0, 3, 1, 2).float()))
    truth = pair_scores(made, pixels(folders / "truth"))
    assert told["scores"]["l1"] == pytest.approx(truth["l1"], rel=1e-3)
    wanted = {"pixel_range": pixel_range, "padding": "reflect"}
    assert told.get("assumed") == (wanted if foreign else None)
    words = f"--weights G.{suffix} {flag} --real real --size 16 --num 4"
    if foreign and pixel_range == "linear255":
        assert run(words) == 2 and "whose last convolution has no bias" in capsys.readouterr().err
        return
    told = result(capsys, words)
    with torch.no_grad():
        made = as_bytes(G(fixed_noise(0, 4, 6)[..., None, None]))
    squares = [Image.open(p).resize((16, 16), Image.Resampling.BICUBIC)
               for p in sorted((folders / "real").iterdir())]  # fmt: skip
    real = torch.from_numpy(np.stack(list(map(np.asarray, squares))))
    assert told["scores"]["swd"] == pytest.approx(sliced_wasserstein(made, real), rel=1e-3)
    assert run(words) == 0
    line = f"assumed  pixel_range {pixel_range}, which the weights do not tell"
    assert (line in capsys.readouterr().out.splitlines()) is foreign


@pytest.mark.parametrize("judged", ["--fake fake", "--weights T.safetensors --input fake"])
def test_few_images_are_in_memory_at_once(folders, capsys, monkeypatch, judged):
    save_network(folders / "T.safetensors", ResnetGenerator(ngf=2, n_blocks=1), step=1)
    script(folders / "tiny.pt", Tiny())
    (folders / "truth/0.png").rename(folders / "truth/9.png")
    (folders / "fake/0.png").rename(folders / "fake/9.PNG")
    words = f"{judged} --real real --truth truth --features tiny.pt"
    whole, decode, counts = result(capsys, words), decode_module.decode_domain, []

    def counted(scan, **options):
        counts.append(len(scan.files))
        return decode(scan, **options)

    monkeypatch.setattr(decode_module, "decode_domain", counted)
    monkeypatch.setattr(evaluate, "PIXELS", 2 * 16 * 20 + 1)
    parts = result(capsys, words)
    assert sorted(counts) == [1, 1, 1, *[2] * 7]  # 5, 5 and 7 images
    assert parts["scores"] == pytest.approx(whole["scores"], rel=1e-6)
    assert parts | {"scores": 0} == whole | {"scores": 0}


def test_sizes_and_headers_are_looked_at_before_anything_is_computed(folders, capsys, monkeypatch):
    monkeypatch.setattr(decode_module, "decode_domain", None)
    make_images(folders / "small", 2, (8, 8))
    save_network(folders / "T.safetensors", ResnetGenerator(ngf=2, n_blocks=1), step=1)
    assert run("--weights T.safetensors --input fake --real small") == 2
    assert "--input fake has images of 20x16, --real small of 8x8" in capsys.readouterr().err
    (folders / "real/x.png").write_text("no image")
    assert run("--fake fake --real real") == 2
    assert "real/x.png: not a JPEG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "give the images to judge: either --fake FOLDER, or --weights"),
        ("--fake fake --weights w --real real", "give the images to judge"),
        ("--fake fake", "give --real FOLDER, --truth FOLDER or both"),
        ("--fake fake --truth truth --features f", "fid and kid, which need --real"),
        ("--fake fake --real real --architecture inception_v3", "--architecture needs --features"),
        ("--fake fake --real real --input real", "--input is for --weights"),
        ("--fake fake --real real --num 3", "--num is for --weights"),
        ("--fake fake --real real --pixel_range tanh", "--pixel_range is for --weights"),
        ("--fake gone --real real", "--fake gone does not exist"),
        ("--fake tiny.pt --real real", "--fake tiny.pt is not a folder"),
        ("--fake empty --real real", "empty has no images"),
        ("--fake broken --real real", "broken/b.png: not a JPEG"),
        ("--fake cut --real real", "cut/1.png: cannot be decoded: "),
        ("--fake mixed --real real", "different sizes, 16x16 and 20x16 pixels: give --size N"),
        ("--fake small --real real", "of 8x8, --real real of 20x16 pixels: give --size N"),
        ("--fake small --truth small", "ssim needs images of 11 pixels or more"),
        ("--fake fake --truth real", "5 images and --truth real 7: each image needs its truth"),
        ("--fake fake --truth named", "--truth named has no image called 4, which is in --fake"),
        ("--fake twice --truth small --size 16", "--fake twice: two images have one name"),
        ("--fake twice --truth twice2", "two images have one name, but for the suffix"),
        ("--fake fake --real real --features maps.pt", "(N, features) is needed"),
        ("--fake fake --real one --features tiny.pt", "at least 2 images of each"),
        ("--fake fake --real real --features fake/0.png", "is no TorchScript file"),
        ("--weights T.safetensors --real real", "--input FOLDER is missing"),
        ("--weights T.safetensors --real real --input fake --num 2", "--num: T.safetensors is a"),
        ("--weights T.safetensors --real real --direction AtoB", "--direction chooses"),
        ("--weights D.safetensors --real real --input fake", "--input: D.safetensors is a"),
        ("--weights D.safetensors --real real --num 1000001", "must be at most 1000000"),
        ("--weights D.safetensors --real real --truth fake", "--truth: the samples of a DCGAN"),
        ("--weights D.safetensors --real real", "--weights has images of 16x16, --real real of"),
        ("--weights gone.safetensors --real real", "gone.safetensors does not exist"),
    ],
)
def test_bad_input_is_one_line(folders, capsys, words, reason):
    script(folders / "maps.pt", Maps())
    script(folders / "tiny.pt", Tiny())
    save_network(folders / "T.safetensors", ResnetGenerator(ngf=2, n_blocks=1), step=1)
    save_network(folders / "D.safetensors", DCGANGenerator(ngf=2, nz=3, size=16), step=1)
    (folders / "empty").mkdir()
    make_images(folders / "broken", 2, (16, 20))
    (folders / "broken/b.png").write_text("no image")
    make_images(folders / "cut", 2, (16, 20))
    (folders / "cut/1.png").write_bytes((folders / "cut/1.png").read_bytes()[:200])
    make_images(folders / "mixed", 2, (16, 20))
    make_images(folders / "mixed/more", 1, (16, 16))
    make_images(folders / "small", 2, (8, 8))
    make_images(folders / "one", 1, (16, 20))
    make_images(folders / "named", 5, (16, 20))
    (folders / "named/4.png").rename(folders / "named/5.png")
    for name in ("twice", "twice2"):
        make_images(folders / name, 2, (16, 20))
        (folders / name / "1.png").rename(folders / name / "0.PNG")
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert reason in err
    assert {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()} == before


def test_every_architecture_of_the_option_can_be_built():
    assert tuple(BUILT) == ARCHITECTURES


EVALUATED = "--fake fake --real real --device cpu"
IMPORTS = """
import sys
from fastcyclegan import command, evaluate
from fastcyclegan.data import decode as decode_module
code = command.run(evaluate.main, sys.argv[1:])
names = "torchmetrics", "torchvision", "torch_fidelity", "scipy"
print([name for name in names if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "imported"), [("", []), ("--features tiny.pt", ["torchmetrics"])]
)
def test_torchmetrics_comes_with_features_and_torchvision_never(folders, words, imported):
    """The latter breaks beside a CPU build of torch."""
    script(folders / "tiny.pt", Tiny())
    line = [sys.executable, "-c", IMPORTS, *EVALUATED.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*line, *words.split()], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == str(imported)
