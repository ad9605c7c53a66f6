"""Photographs per second: translate beside junyanz's own test loop, files in and files out.

Theirs is ``TestModel`` with its ``tensor2im`` and ``save_image``, one photograph at a time in fp32,
as its test.py does; decoding is Pillow's, scaled to [-1, 1], and of the two pictures that it saves
only the result is saved here. Both run over the same photographs in turn, some at a time, so that a
busy moment of the machine hits both; each figure is photographs by seconds, of all turns together.
What both make of the first one, from the same weights, must be the same. With FASTCYCLEGAN_DATA and
FASTCYCLEGAN_PEER_JZ:

    pytest bench/bench_translate.py --benchmark-only

A longer run, over all test photographs, is marked slow (``-m slow``).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from bench.jz import VARIABLE, checkout
from fastcyclegan.config import TranslateConfig
from fastcyclegan.device import resolve_device
from fastcyclegan.models import ResnetGenerator
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.translation import Job, Translator, translate_files

DEVICE = resolve_device("auto")
ROWS = ["junyanz fp32", "translate fp32", "translate bf16"]
FEW, ALL, TURNS = 6, 120, 3
# Levels of 255, on average over a picture: theirs are cut off, ours are rounded.
LARGEST_ERROR = {"junyanz fp32": 0.0, "translate fp32": 0.6, "translate bf16": 1.5}
Loop = Callable[[Sequence[Path], Path], None]


def _photos(count: int) -> list[Path]:
    root = os.environ.get("FASTCYCLEGAN_DATA")
    if not root or checkout() is None:
        pytest.skip(f"FASTCYCLEGAN_DATA names no photographs, or {VARIABLE} no checkout")
    return sorted(Path(root, "horse2zebra/testA").iterdir())[:count]


def _net() -> ResnetGenerator:
    net = ResnetGenerator()
    init_weights(net, 0.02, torch.Generator().manual_seed(0))
    return net.eval().to(DEVICE)


def _theirs() -> Loop:
    if str(checkout()) not in sys.path:
        sys.path.insert(0, str(checkout()))
    networks, util = (importlib.import_module(x) for x in ("models.networks", "util.util"))
    gpus = [0] if DEVICE.type == "cuda" else []
    G = networks.define_G(3, 3, 64, "resnet_9blocks", "instance", False, "normal", 0.02, gpus)
    getattr(G, "module", G).load_state_dict(_net().state_dict())

    def loop(photos: Sequence[Path], folder: Path) -> None:
        for path in photos:
            pixels = np.array(Image.open(path).convert("RGB"))
            real = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1)
            with torch.no_grad():
                fake = G(real.to(DEVICE))
            util.save_image(util.tensor2im(fake), str(folder / f"{path.stem}.png"))

    return loop


def _ours(dtype: torch.dtype) -> Loop:
    translator = Translator(_net(), dtype)
    config = TranslateConfig(weights="", input="", output="")

    def loop(photos: Sequence[Path], folder: Path) -> None:
        jobs = [Job(path, folder / f"{path.stem}.png", 256 * 256) for path in photos]
        assert all(problem is None for _, problem in translate_files(translator, jobs, config))

    return loop


def _picture(loop: Loop, photos: Sequence[Path], folder: Path) -> np.ndarray:
    """What ``loop`` makes of the first photograph; it has run then."""
    loop(photos[:2], folder)
    return np.array(Image.open(folder / f"{photos[0].stem}.png"), dtype=np.float64)


class Measured(NamedTuple):
    """Of one row; ``error``: how far its first picture is from that of the first row, in levels."""

    loop: Loop
    img_per_s: float
    error: float


@cache
def measured(count: int) -> dict[str, Measured]:
    """Every row, timed in turn."""
    photos = _photos(count)
    loops = dict(zip(ROWS, (_theirs(), _ours(torch.float32), _ours(torch.bfloat16)), strict=True))
    seconds = dict.fromkeys(ROWS, 0.0)
    with TemporaryDirectory() as folder:
        pictures = {name: _picture(loop, photos, Path(folder)) for name, loop in loops.items()}
        for turn in range(TURNS):
            for name, loop in loops.items():
                start = time.perf_counter()
                loop(photos[turn::TURNS], Path(folder))
                seconds[name] += time.perf_counter() - start
    errors = {name: float(abs(p - pictures[ROWS[0]]).mean()) for name, p in pictures.items()}
    return {name: Measured(loops[name], len(photos) / seconds[name], errors[name]) for name in ROWS}


def _report(benchmark: Any, row: str, count: int, folder: Path) -> None:
    """The row's own time is that of two photographs."""
    photos, table = _photos(count), measured(count)
    loop, speed, error = table[row]
    assert error <= LARGEST_ERROR[row], f"{row} is off by {error:g} levels: nothing is recorded"
    benchmark.group = f"translate {count} photographs of 256 px, {DEVICE}"
    benchmark.extra_info |= {
        "img_per_s": speed,
        f"speedup_over {ROWS[0]}": speed / table[ROWS[0]].img_per_s,
        "mean_error_in_levels": error,
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(loop, (photos[:2], folder), rounds=1)


@pytest.mark.parametrize("row", ROWS)
def bench_translate(benchmark: Any, row: str, tmp_path: Path) -> None:
    _report(benchmark, row, FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def bench_translate_all(benchmark: Any, row: str, tmp_path: Path) -> None:
    _report(benchmark, row, ALL, tmp_path)
