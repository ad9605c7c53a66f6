"""Decoding a domain: the reference's resize, bit for bit, into one buffer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.data import decode
from fastcyclegan.data.decode import decode_domain, target_size
from fastcyclegan.data.scan import scan_folder
from fastcyclegan.errors import UserError

RNG = np.random.default_rng(1)
SIZES = [(40, 52), (33, 47), (61, 30)]
OPTIONS = {"load_size": 36, "crop_size": 32, "threads": 2}


def put(path, size=(40, 52), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, **options)
    return path


def fill(folder, sizes=SIZES):
    for i, size in enumerate(sizes):
        put(folder / f"{i:02}.png", size)
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def decoded(folder, **options):
    return decode_domain(scan_folder(folder), **{**OPTIONS, **options})


def message(*args, **options):
    with pytest.raises(UserError) as caught:
        decoded(*args, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


# (width, height) by hand from the reference's rules, for load_size 36 and crop_size 32.
BY_HAND = {
    "resize_and_crop": [(36, 36), (36, 36), (36, 36)],
    "scale_width": [(36, 32), (36, 32), (36, 73)],
    "scale_width_and_crop": [(36, 32), (36, 32), (36, 73)],
    "crop": [(52, 40), (47, 33), (30, 61)],
    "none": [(52, 40), (48, 32), (32, 60)],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preprocess", BY_HAND)
def test_every_image_is_pillows_bicubic(tmp_path, preprocess, channels):
    crop_size = 30 if preprocess == "crop" else 32
    images = decoded(fill(tmp_path), preprocess=preprocess, channels=channels, crop_size=crop_size)
    assert images.names == ["00.png", "01.png", "02.png"] and len(images) == 3
    assert images.pixels.dtype == torch.uint8 and images.channels == channels
    for i, size in enumerate(BY_HAND[preprocess]):
        image = Image.open(tmp_path / f"{i:02}.png").convert("RGB")
        image = image.convert("L") if channels == 1 else image
        want = np.asarray(image if image.size == size else image.resize(size, Image.BICUBIC))
        got = images.image(i).numpy()
        assert np.array_equal(got, want.reshape(size[1], size[0], channels))
    assert len(images.pixels) == sum(w * h for w, h in BY_HAND[preprocess])


def test_target_size_rounds_as_the_reference_does():
    assert target_size(100, 300, "scale_width", 200, 10) == (66, 200)
    assert target_size(100, 300, "scale_width", 200, 67) == (67, 200)
    assert target_size(10, 14, "none", 0, 0) == (8, 16)
    assert target_size(1, 2, "none", 0, 0) == (4, 4)


def test_offsets_fit_the_buffer(tmp_path):
    images = decoded(fill(tmp_path), preprocess="none")
    ends = images.offset + images.height * images.width
    assert images.offset.tolist() == [0, *ends[:-1].tolist()]
    assert int(ends[-1]) == len(images.pixels)
    assert {t.dtype for t in (images.offset, images.height, images.width)} == {torch.int64}


@pytest.mark.parametrize("preprocess", ["none", "resize_and_crop"])
def test_a_broken_image_leaves_no_gap(tmp_path, preprocess):
    fill(tmp_path, SIZES * 2)
    whole = decoded(tmp_path, preprocess=preprocess)
    cut(tmp_path / "01.png")
    cut(tmp_path / "05.png")
    images = decoded(tmp_path, preprocess=preprocess, max_bad=0.5)
    assert images.names == ["00.png", "02.png", "03.png", "04.png"]
    for i, j in enumerate((0, 2, 3, 4)):
        assert torch.equal(images.image(i), whole.image(j))
    assert len(images.pixels) == int((images.height * images.width).sum())
    assert [p.name for p, _ in images.quarantined] == ["01.png", "05.png"]
    assert all(reason.startswith("cannot be") for _, reason in images.quarantined)


def test_max_bad_counts_scan_and_decode(tmp_path):
    fill(tmp_path, [(40, 40)] * 8)
    (tmp_path / "08.png").touch()
    cut(put(tmp_path / "09.png"))
    images = decoded(tmp_path, max_bad=0.2)
    assert len(images) == 8
    assert [p.name for p, _ in images.quarantined] == ["08.png", "09.png"]
    text = message(tmp_path, max_bad=0.19)
    assert text.startswith(f"2 of 10 images in {tmp_path} cannot be used (--max_bad allows")
    assert "08.png: empty file; " in text and "09.png: cannot be" in text
    assert message(tmp_path, max_bad=0.05).startswith("1 of 10")


@pytest.mark.parametrize("broken", [(1,), (1, 2), (0, 1, 2, 3, 4)])
def test_the_next_good_file_takes_the_place_of_a_broken_one_under_a_limit(tmp_path, broken):
    """As if the broken files had not been there; also where the files that follow are broken."""
    fill(tmp_path / "whole", [(40, 40 + i) for i in range(9)])
    shutil.copytree(tmp_path / "whole", tmp_path / "some")
    for i in broken:
        (tmp_path / "whole" / f"{i:02}.png").unlink()
        cut(tmp_path / "some" / f"{i:02}.png")
    limited = {"max_dataset_size": 3}
    options = {**OPTIONS, "preprocess": "none", "max_bad": 1.0}
    images = decode_domain(scan_folder(tmp_path / "some", **limited), **options)
    wanted = decode_domain(scan_folder(tmp_path / "whole", **limited), **options)
    assert len(images) == 3
    assert images.digest == wanted.digest
    assert [p.name for p, _ in images.quarantined] == [f"{i:02}.png" for i in broken]


def test_max_bad_counts_what_a_limit_made_it_look_at(tmp_path):
    fill(tmp_path, [(40, 40)] * 9)
    cut(tmp_path / "01.png")
    scan = scan_folder(tmp_path, max_dataset_size=3)
    assert len(decode_domain(scan, **{**OPTIONS, "max_bad": 0.34})) == 3
    with pytest.raises(UserError, match="1 of 3 images"):
        decode_domain(scan, **{**OPTIONS, "max_bad": 0.3})


def test_the_message_stays_short(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}\n.png").touch()
    put(tmp_path / "good.png")
    text = message(tmp_path)
    assert text.startswith("20 of 21 images") and text.endswith("; and 17 more")
    assert text.count("empty file") == 3


def test_no_usable_image(tmp_path):
    (tmp_path / "a.png").touch()
    assert message(tmp_path, max_bad=1.0).startswith("1 of 1 images")
    (tmp_path / "a.png").unlink()
    cut(put(tmp_path / "b.png"))
    assert message(tmp_path, max_bad=1.0).startswith("1 of 1 images")


def test_smaller_than_the_crop_window(tmp_path):
    fill(tmp_path)
    text = message(tmp_path, preprocess="crop", crop_size=32)
    assert "02.png is 30x61, smaller than --crop_size 32: lower" in text
    assert "(and 1 more)" in message(tmp_path, preprocess="crop", crop_size=34)
    assert len(decoded(tmp_path, preprocess="crop", crop_size=30)) == 3


@pytest.mark.parametrize(("options", "flag"), [
    ({"preprocess": "crop_and_pray"}, "--preprocess"),
    ({"load_size": 16}, "--load_size 16 is smaller than --crop_size 32"),
    ({"load_size": 16, "preprocess": "scale_width_and_crop"}, "--load_size"),
    ({"load_size": 0, "preprocess": "scale_width"}, "--load_size"),
    ({"crop_size": 0, "preprocess": "crop"}, "--crop_size"),
])  # fmt: skip
def test_contradicting_options(tmp_path, options, flag):
    assert flag in message(fill(tmp_path), **options)


def test_constant_images_are_counted(tmp_path):
    fill(tmp_path)
    Image.new("RGB", (40, 40), (9, 8, 7)).save(tmp_path / "flat.png")
    almost = Image.new("RGB", (36, 36), (9, 8, 7))
    almost.putpixel((35, 35), (9, 8, 6))
    almost.save(tmp_path / "almost.png")
    assert decoded(tmp_path).notes == {decode.NOTE_CONSTANT: 1}


def test_mixed_orientations_without_resize(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    put(tmp_path / "a.png", (40, 52), exif=exif)
    images = decoded(tmp_path, preprocess="crop")
    stored = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(images.image(0).numpy(), np.rot90(stored, 1))


def test_a_header_that_lies_is_quarantined(tmp_path):
    fill(tmp_path)
    scan = scan_folder(tmp_path)
    put(tmp_path / "01.png", (48, 47))
    images = decode_domain(scan, **{**OPTIONS, "preprocess": "none", "max_bad": 0.5})
    assert [(p.name, r) for p, r in images.quarantined] == [
        ("01.png", "decodes to 47x48 pixels, its header says otherwise")
    ]
    assert images.names == ["00.png", "02.png"]


def test_alpha_reaches_the_decoder(tmp_path):
    Image.new("RGBA", (40, 40), (9, 8, 7, 0)).save(tmp_path / "a.png")
    assert decoded(tmp_path, alpha="black").pixels.max() == 0
    assert decoded(tmp_path).pixels.min() == 255
    assert decoded(tmp_path, channels=4).pixels.shape == (36 * 36, 4)


def test_threads_do_not_change_the_result(tmp_path):
    fill(tmp_path, SIZES * 5)
    digests = {decoded(tmp_path, threads=n).digest for n in (0, 1, 4)}
    assert len(digests) == 1


def test_digest_is_that_of_names_sizes_and_pixels(tmp_path):
    base = decoded(fill(tmp_path / "one")).digest
    assert len(base) == 64 and int(base, 16) >= 0
    (tmp_path / "one").rename(tmp_path / "two")
    assert decoded(tmp_path / "two").digest == base
    assert decoded(tmp_path / "two", load_size=37).digest != base
    assert decoded(tmp_path / "two", channels=1).digest != base
    (tmp_path / "two" / "00.png").rename(tmp_path / "two" / "00 .png")
    renamed = decoded(tmp_path / "two").digest
    assert renamed != base
    other = decoded(tmp_path / "two")
    other.pixels[0, 0] ^= 1
    assert other.digest != renamed


def test_digest_tells_sizes_apart(tmp_path):
    Image.new("RGB", (40, 52), (9, 8, 7)).save(tmp_path / "a.png")
    upright = decoded(tmp_path, preprocess="none").digest
    Image.new("RGB", (52, 40), (9, 8, 7)).save(tmp_path / "a.png")
    assert decoded(tmp_path, preprocess="none").digest != upright


def test_odd_names_survive(tmp_path):
    put(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    for name in (b"line\nbreak.png", b"\xff\xfe.png", "漢字 🐴.png".encode()):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(data)
    images = decoded(tmp_path)
    assert {os.fsencode(n) for n in images.names} == set(os.listdir(os.fsencode(tmp_path)))
    assert len(images.digest) == 64


def test_files_are_left_alone_and_nothing_is_printed(tmp_path, capfd):
    fill(tmp_path)
    cut(put(tmp_path / "cut.jpg"))
    cut(put(tmp_path / "cut.tif", compression="tiff_lzw"))

    def state():
        return [(p.name, p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(tmp_path.iterdir())]

    before = state()
    images = decoded(tmp_path, max_bad=0.9)
    assert len(images) == 3 and len(images.quarantined) == 2
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_to_the_same_device_is_the_same_object(tmp_path):
    images = decoded(fill(tmp_path))
    assert images.to("cpu") is images


@pytest.mark.cuda
def test_digest_is_the_same_on_cuda(tmp_path):
    images = decoded(fill(tmp_path))
    moved = decoded(tmp_path, device="cuda")
    assert moved.pixels.is_cuda and moved.offset.is_cuda
    assert moved.digest == images.digest
    assert images.to("cuda").digest == images.digest


MEMORY = r"""
import re, sys
from pathlib import Path
from fastcyclegan.data.decode import decode_domain
from fastcyclegan.data.scan import scan_folder

def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

scan = scan_folder(sys.argv[1])
before = peak()
images = decode_domain(scan, load_size=600, crop_size=600, threads=2)
print(images.pixels.numel(), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
def test_memory_is_one_buffer(tmp_path):
    for i in range(100):
        Image.new("RGB", (60, 60), (i, 0, 0)).save(tmp_path / f"{i}.png")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    buffer, grown = map(int, run.stdout.split())
    assert buffer == 100 * 600 * 600 * 3
    assert 0.7 * buffer < grown < 1.3 * buffer


def test_real_photographs():
    root = os.environ.get("FASTCYCLEGAN_DATA")
    if not root:
        pytest.skip("FASTCYCLEGAN_DATA is not set: no real photographs")
    scan = scan_folder(Path(root) / "horse2zebra" / "trainA", max_dataset_size=50)
    images = decode_domain(scan, threads=2)
    assert len(images) == 50 and images.quarantined == []
    for i in (0, 49):
        want = Image.open(scan.files[i]).convert("RGB").resize((286, 286), Image.BICUBIC)
        assert np.array_equal(images.image(i).numpy(), np.asarray(want))


@pytest.mark.parametrize("size", [(40, 60), (61, 40), (33, 33), (16, 900)])
def test_resize_and_center_crop_is_torchvisions(tmp_path, size):
    """The shorter side to load_size with Pillow's bilinear filter, then the centre."""
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    images = decode_domain(
        scan_folder(tmp_path), preprocess="resize_and_center_crop", load_size=20, crop_size=16
    )
    image = Image.fromarray(pixels)
    if width > 8 * height:  # of a long image only the middle is looked at
        left = round((width - 8 * height) / 2)
        image = image.crop((left, 0, left + 8 * height, height))
    short, long = sorted(image.size)
    scaled = {short: 20, long: int(20 * long / short)}
    image = image.resize(tuple(scaled[x] for x in image.size), Image.Resampling.BILINEAR)
    left, top = round((image.width - 16) / 2.0), round((image.height - 16) / 2.0)
    wanted = np.asarray(image)[top : top + 16, left : left + 16]
    assert np.array_equal(images.image(0).numpy(), wanted)
