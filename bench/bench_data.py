"""Batches for training: decoding once and sampling from memory, beside a DataLoader with Pillow.

    pytest bench/bench_data.py --benchmark-only

Both make the same of each file: bicubic to ``LOAD`` pixels, a random window of ``CROP``, a random
flip, values from -1 to 1. The photographs are those of FASTCYCLEGAN_DATA, or drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench.ceilings import DEVICE
from fastcyclegan.data.decode import decode_domain
from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.data.sampler import ImageSampler
from fastcyclegan.data.scan import scan_folder

COUNT, LOAD, CROP, BATCH, THREADS = 64, 286, 256, 8, 2


@cache
def folder() -> TemporaryDirectory:
    """COUNT photographs, removed at the end of the run; skips where the named ones are too few."""
    place = TemporaryDirectory()
    root = os.environ.get("FASTCYCLEGAN_DATA")
    if root:
        there = Path(root, "horse2zebra/trainA")
        paths = sorted(path for path in there.glob("*") if path.is_file())[:COUNT]
        if len(paths) < COUNT:
            pytest.skip(f"FASTCYCLEGAN_DATA has {len(paths)} of {COUNT} photographs in {there}")
        for path in paths:
            Path(place.name, path.name).write_bytes(path.read_bytes())
        return place
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image = coarse.resize((256, 256), Image.Resampling.BICUBIC)
        image.save(Path(place.name, f"{index:03}.jpg"), quality=90)
    return place


class Photographs(Dataset):
    """As the loaders of most trainers do it: the file is decoded each time."""

    def __init__(self, crop: bool = True) -> None:
        self.paths, self.crop = sorted(Path(folder().name).iterdir()), crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").resize((LOAD, LOAD), Image.Resampling.BICUBIC)
        if self.crop:
            left, top = torch.randint(0, LOAD - CROP + 1, (2,)).tolist()
            image = image.crop((left, top, left + CROP, top + CROP))
            if torch.rand(()) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float().sub(127.5).div(127.5)


def decoded() -> ImageSet:
    options = {"preprocess": "resize_and_crop", "load_size": LOAD, "crop_size": CROP}
    scan = scan_folder(folder().name)
    return decode_domain(scan, channels=3, threads=THREADS, **options)


def agree() -> None:
    """Both pipelines make the same pixels of a file, before the random window."""
    images, photographs = decoded(), Photographs(crop=False)
    for index in (0, COUNT - 1):
        ours = images.image(index).permute(2, 0, 1).float().sub(127.5).div(127.5)
        assert torch.equal(ours, photographs[index]), "the pipelines differ: nothing is recorded"


def record(
    benchmark, body: Callable[[], object], name: str, rounds: int, images: int = COUNT
) -> None:
    """Time ``body``, which makes ``images``."""
    benchmark.group = f"data, {name}, {CROP} px of {LOAD} px, {DEVICE}"
    benchmark.pedantic(body, rounds=rounds, warmup_rounds=1)
    source = "photographs" if os.environ.get("FASTCYCLEGAN_DATA") else "drawn pictures"
    benchmark.extra_info |= {
        "img_per_s": images / benchmark.stats.stats.median,
        "images": f"{COUNT} {source}",
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize("way", ["decode_domain", "Pillow"])
def bench_decode(benchmark, way: str) -> None:
    """Every file once: what training waits for at its start."""
    agree()
    photographs = Photographs(crop=False)
    bodies = {"decode_domain": decoded, "Pillow": lambda: [photographs[i] for i in range(COUNT)]}
    record(benchmark, bodies[way], "decode", rounds=3)


@pytest.mark.parametrize("way", ["resident", "DataLoader, 2 workers"])
def bench_batches(benchmark, way: str) -> None:
    """Epochs of batches on the training device."""
    agree()
    epochs = 1
    if way == "resident":
        epochs = 20 if DEVICE.type == "cuda" else 1  # or a round would be too short to be measured
        sampler = ImageSampler(decoded(), batch_size=BATCH, crop_size=CROP, device=DEVICE)
        steps = iter(range(10**9))

        def epoch() -> None:
            for _ in range(epochs * COUNT // BATCH):
                sampler.batch(next(steps))[0].sum().item()
    else:
        loader = DataLoader(Photographs(), BATCH, num_workers=THREADS, persistent_workers=True)

        def epoch() -> None:
            for batch in loader:
                batch.to(DEVICE).sum().item()

    record(benchmark, epoch, f"batches of {BATCH}", rounds=5, images=epochs * COUNT)
