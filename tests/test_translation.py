"""What goes around the network: batches, order, 16 bits, transparency, EXIF, formats."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcyclegan import command, translate
from fastcyclegan.config import TranslateConfig
from fastcyclegan.data.photos import Photo, read_photo, write_photo
from fastcyclegan.models import ResnetGenerator, UnetGenerator
from fastcyclegan.models.weights import save_network
from fastcyclegan.translation import (
    Job,
    Translator,
    in_batches,
    in_order_of_numbers,
    side_by_side,
    translate_files,
)

CONFIG = TranslateConfig(weights="w", input="i", output="o")


class Negative(nn.Module):
    """Turns an image into its negative, and notes what it was given."""

    multiple, smallest, pixel_range = 4, 1, "tanh"

    def __init__(self, channels=3):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.arch = {"input_nc": channels, "output_nc": channels}
        self.seen = []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x.dtype))
        return -x


def picture(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def noise(*shape, seed=0, dtype=np.uint8):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype, endpoint=True)


def negative(source, target, channels=3, **options):
    """One file through the negative; returns the network."""
    net = Negative(channels)
    config = TranslateConfig(weights="w", input="i", output="o", **options)
    [(_, problem)] = translate_files(Translator(net), [Job(source, target)], config)
    assert problem is None
    return net


def test_images_of_one_size_are_joined_and_every_one_gets_its_own_result(tmp_path):
    sizes = [(16, 20), (20, 16), (16, 20), (16, 20), (20, 16), (16, 20), (24, 24)]
    jobs = [
        Job(picture(tmp_path / f"{i}.png", noise(*size, 3, seed=i)), tmp_path / f"out/{i}.png")
        for i, size in enumerate(sizes)
    ]
    net = Negative()
    done = [job for job, problem in in_batches(Translator(net), jobs, CONFIG, 3) if not problem]
    assert sorted(done, key=jobs.index) == jobs
    assert sorted(shape[0] for shape, _ in net.seen) == [1, 1, 2, 3]
    for job in jobs:
        assert np.array_equal(
            255 - np.array(Image.open(job.source)), np.array(Image.open(job.target))
        )


def test_single_images_are_done_in_the_order_of_the_frames(tmp_path):
    jobs = [
        Job(picture(tmp_path / f"{i}.png", noise(16, 16 + 4 * (i % 2), 3)), tmp_path / f"o/{i}.png")
        for i in range(9)
    ]
    translator = Translator(Negative())
    assert [job for job, _ in in_batches(translator, jobs, CONFIG, 1)] == jobs
    assert [job for job, _ in side_by_side(translator, jobs, CONFIG, 3)] == jobs
    names = ["f10.png", "f9.png", "f1/x.png", "F2.png", "a.png"]
    assert sorted(names, key=in_order_of_numbers) == [
        "F2.png", "a.png", "f1/x.png", "f9.png", "f10.png",
    ]  # fmt: skip


def test_no_more_is_decoded_ahead_than_memory_allows(tmp_path, monkeypatch):
    """Images of 40 megapixels by their headers: never two of them waiting."""
    from fastcyclegan import translation

    most, waiting = [], set()

    def read(job, *_):
        waiting.add(job.source)
        most.append(len(waiting))
        return Photo(noise(16, 16, 3))

    class Counting(Translator):
        def __call__(self, images):
            waiting.pop()
            return super().__call__(images)

    monkeypatch.setattr(translation, "_read", read)
    jobs = [Job(Path(f"{i}.png"), tmp_path / f"{i}.png", 40 * 10**6) for i in range(6)]
    assert len(list(in_batches(Counting(Negative()), jobs, CONFIG, 1))) == 6
    assert max(most) <= 2


def test_cores_are_shared_between_images_and_given_back(tmp_path, monkeypatch):
    threads = []

    class Asking(Translator):
        def __call__(self, images):
            threads.append(torch.get_num_threads())
            return super().__call__(images)

    jobs = [
        Job(picture(tmp_path / f"{i}.png", noise(16, 16, 3)), tmp_path / f"o/{i}.png", 256)
        for i in range(4)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        for count, share in ((1, 6), (2, 3), (99, 1)):
            threads.clear()
            assert len(list(side_by_side(Asking(Negative()), jobs, CONFIG, count))) == 4
            assert threads == [share] * 4 and torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


def test_a_bad_file_among_others_is_named(tmp_path):
    good = Job(picture(tmp_path / "a.png", noise(16, 16, 3)), tmp_path / "o/a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    bad = Job(tmp_path / "b.png", tmp_path / "o/b.png")
    for run in (in_batches, side_by_side):
        found = dict(run(Translator(Negative()), [bad, good], CONFIG, 2))
        assert found[good] is None and "not a JPEG" in found[bad]


def test_16_bit_grey_stays_16_bit(tmp_path):
    grey = noise(16, 20, dtype=np.uint16)
    grey[0, :3] = 0, 65535, 257
    source = picture(tmp_path / "in.png", grey)
    net = negative(source, tmp_path / "out.png", channels=1)
    assert net.seen == [((1, 1, 16, 20), torch.float32)]
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode.startswith("I;16")
        assert np.abs(np.array(image).astype(int) - (65535 - grey.astype(int))).max() <= 1
    negative(source, tmp_path / "out.jpg", channels=1, quality=100)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.mode == "L"
        assert np.abs(np.array(image).astype(int) - (255 - grey // 257.0)).mean() < 2
    negative(source, tmp_path / "rgb.png", channels=3)
    assert np.array(Image.open(tmp_path / "rgb.png")).dtype == np.uint8


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparency_is_kept(tmp_path, suffix):
    rgba = noise(16, 20, 4)
    source, target = picture(tmp_path / "in.png", rgba), tmp_path / f"out.{suffix}"
    negative(source, target, quality=100)
    with Image.open(target) as image:
        assert image.mode == "RGBA"
        assert np.array_equal(np.array(image)[..., 3], rgba[..., 3])
    if suffix == "png":
        on_white = 255 - read_photo(source, 3, "white").pixels
        assert np.array_equal(np.array(Image.open(target))[..., :3], on_white)
    negative(source, tmp_path / "flat.png", alpha="black")
    negative(source, tmp_path / "flat.jpg")
    for name in ("flat.png", "flat.jpg"):
        assert Image.open(tmp_path / name).mode == "RGB"


def test_grey_with_transparency(tmp_path):
    grey = np.repeat(noise(16, 20, 1), 3, axis=2)
    alpha = noise(16, 20, 1, seed=1) // 128 * 255
    source = picture(tmp_path / "in.png", np.concatenate([grey, alpha], axis=2))
    negative(source, tmp_path / "out.png", channels=1)
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "LA" and np.array_equal(np.array(image)[..., 1:], alpha)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_exif_is_copied_when_asked_for_without_the_orientation(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    source = picture(tmp_path / "in.jpg", noise(16, 20, 3), exif=exif)
    target = tmp_path / f"out.{suffix}"
    negative(source, target)
    assert not Image.open(target).getexif()
    negative(source, target, keep_exif=True)
    with Image.open(target) as image:
        assert image.size == (16, 20) and dict(image.getexif()) == {0x010F: "a camera"}


def test_a_colour_image_with_4_channels_as_jpeg_loses_the_fourth(tmp_path):
    write_photo(tmp_path / "out.jpg", Photo(noise(16, 16, 4)))
    assert Image.open(tmp_path / "out.jpg").mode == "RGB"


@pytest.fixture
def call(tmp_path, capsys):
    """The command with a small generator on the folder ``in``."""
    torch.manual_seed(0)
    save_network(tmp_path / "G.safetensors", ResnetGenerator(ngf=4, n_blocks=1), step=1)
    for i in (1, 2):
        picture(tmp_path / f"in/deep/frame{i}.bmp", noise(20, 17, 3, seed=i))

    def run(*words, output="out"):
        flags = f"--weights {tmp_path}/G.safetensors --input {tmp_path}/in --device cpu".split()
        code = command.run(translate.main, [*flags, "--output", str(tmp_path / output), *words])
        return SimpleNamespace(code=code, err=capsys.readouterr().err)

    return run


def test_format_and_precision(call, tmp_path):
    for words in (["--format", "webp"], ["--format", "jpg"], ["--precision", "bf16"]):
        assert call(*words, output=words[1]).code == 0
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("frame1.[!b]*"))
    assert found == ["bf16/deep/frame1.png", "jpg/deep/frame1.jpg", "webp/deep/frame1.webp"]
    assert call().code == 0
    near, exact = (
        np.array(Image.open(tmp_path / folder / "deep/frame1.png")).astype(int)
        for folder in ("bf16", "out")
    )
    assert 0 < np.abs(near - exact).max() <= 12 and np.abs(near - exact).mean() < 2
    assert "--precision tf32" in call("--precision", "tf32", output="x").err


def test_weights_that_take_no_images_are_refused(call, monkeypatch):
    from fastcyclegan.models import weights

    net = Negative()
    net.arch = {"class": "DCGANGenerator", "nz": 100}
    monkeypatch.setattr(weights, "open_generator", lambda *_: (net, {"format": "fastcyclegan/1"}))
    result = call()
    assert result.code == 2 and "makes images from noise" in result.err


def test_large_images_go_through_in_bands_with_their_cost_told(tmp_path):
    torch.manual_seed(0)
    net = ResnetGenerator(ngf=4, n_blocks=1).eval()
    image, told = noise(1, 90, 130, 3), []
    whole, tiled = Translator(net)(image), Translator(net, tile=64, say=told.append)(image)
    assert np.abs(whole.astype(int) - tiled.astype(int)).max() <= 1
    [line] = told
    assert line.startswith("132x92 in 4 bands of 24 rows, 8 sweeps: about 0.4 GB and ")
    assert np.array_equal(Translator(net, tile=128)(image), whole) and len(told) == 1
    grey = ResnetGenerator(1, 1, ngf=4, n_blocks=1).eval()
    deep = noise(1, 90, 130, 1, dtype=np.uint16)
    results = (Translator(grey, tile=tile)(deep).astype(int) for tile in (None, 64))
    assert np.abs(np.subtract(*results)).max() <= 1


def test_tile_refuses_a_unet_by_name(tmp_path, capsys):
    save_network(tmp_path / "U.safetensors", UnetGenerator(ngf=2, num_downs=5), step=1)
    source = picture(tmp_path / "in.png", noise(16, 16, 3))
    words = (
        f"--weights {tmp_path}/U.safetensors --input {source} --output {tmp_path}/o.png --tile 64"
    )
    assert command.run(translate.main, words.split()) == 2
    assert "error: --tile: a U-Net's" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()
