"""Image files with random damage: each gives an image or a BadImage, in bounded time and memory."""

import io
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data import images
from house_rules import ROOT

FILES = 6000
# Pixels are capped by the header; what a decoder takes besides is a few times the picture.
MEMORY_MIB = 600
# For one file, which takes milliseconds.
SECONDS = 20


def seeds() -> list[bytes]:
    """One file of each format and kind, of at most some kilobytes."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    smooth = noise.resize((64, 48), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        (smooth, "JPEG", {"quality": 80, "exif": exif}),
        (smooth, "JPEG", {"progressive": True}),
        (smooth.convert("CMYK"), "JPEG", {}),
        (smooth, "PNG", {"exif": exif}),
        (smooth.convert("P"), "PNG", {"transparency": 3}),
        (smooth.convert("RGBA"), "PNG", {}),
        (noise.convert("L").convert("I;16"), "PNG", {}),
        (smooth, "PNG", {"save_all": True, "append_images": [noise.resize((64, 48))]}),
        (smooth, "WEBP", {}),
        (smooth.convert("RGBA"), "WEBP", {"lossless": True, "exif": exif}),
        (smooth, "BMP", {}),
        (smooth.convert("P"), "BMP", {}),
        (smooth, "PPM", {}),
        (smooth.convert("L"), "PPM", {}),
        (smooth, "TIFF", {}),
        (smooth, "TIFF", {"compression": "tiff_lzw"}),
        (smooth, "TIFF", {"compression": "jpeg"}),
        (smooth.convert("LAB"), "TIFF", {"compression": "tiff_adobe_deflate"}),
    ]
    found = []
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return found


def damaged(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """``data`` with one to four kinds of damage, most of them near its beginning."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = min(int(rng.expovariate(1 / 60)), len(data) - 1) if rng.random() < 0.7 else 0
        at = at or rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)])
        elif kind == 3:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 4:
            other = rng.choice(others)
            begin = rng.randrange(len(other))
            data[at:at] = other[begin : begin + rng.randint(1, 40)]
        else:
            del data[at:]
        data = data or bytearray(b"\0")
    return bytes(data)


def fuzz(folder: Path, files: int) -> None:
    """Read ``files`` damaged files as training does; print what came of them."""
    rng, whole, classes = random.Random(1), seeds(), Counter()
    path = folder / "x.png"
    with images.pillow_warnings():
        for data in whole:
            path.write_bytes(data)
            images.read_image(path, 3)
        before = _peak()
        for i in range(files):
            path.write_bytes(damaged(whole[i % len(whole)], rng, whole))
            signal.alarm(SECONDS)  # which ends the process, whatever a decoder is doing
            for read in (images.read_header, lambda p: images.read_image(p, rng.choice((1, 3, 4)))):
                try:
                    read(path)
                    classes["an image"] += 1
                except images.BadImage as error:
                    assert str(error).isprintable() and len(str(error)) <= 300
                    cause = type(error.__cause__).__name__ if error.__cause__ else "policy"
                    classes[cause] += 1
    print(files, "files", (_peak() - before) // 1024, "MiB", dict(classes.most_common()))


def _peak() -> int:
    """The largest resident size of this process so far, in KiB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def run_fuzz(folder, files, **options):
    code = f"import test_fuzz, pathlib; test_fuzz.fuzz(pathlib.Path({str(folder)!r}), {files})"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, **options
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
def test_no_class_escapes_nothing_hangs_and_memory_is_bounded(tmp_path):
    done = run_fuzz(tmp_path, FILES, timeout=SECONDS * 60)
    assert done.returncode != -signal.SIGALRM, f"{tmp_path / 'x.png'} hangs"
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert int(done.stdout.split()[2]) < MEMORY_MIB


def test_some_damaged_files(tmp_path):
    """The same, short: what everyday tests see of it."""
    with images.pillow_warnings():
        rng, whole = random.Random(2), seeds()
        outcomes = set()
        for i in range(150):
            (tmp_path / "x.png").write_bytes(damaged(whole[i % len(whole)], rng, whole))
            try:
                outcomes.add(images.read_image(tmp_path / "x.png", 3).ndim)
            except images.BadImage as error:
                outcomes.add(str(error)[:10])
    assert 3 in outcomes and len(outcomes) > 2
