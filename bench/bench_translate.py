"""Photographs per second: translate beside junyanz's own test loop, files in and files out.

Theirs is ``TestModel`` with its ``tensor2im`` and ``save_image``, one photograph at a time in fp32,
as its test.py does; decoding is Pillow's, scaled to [-1, 1], and of the two pictures that it saves
only the result is saved here. Both run over the same photographs in turn, some at a time, so that a
busy moment of the machine hits both; each figure is photographs by seconds, of all turns together.
Run alone, with FASTCYCLEGAN_DATA and FASTCYCLEGAN_PEER_JZ:
``pytest bench/bench_translate.py --benchmark-only``.
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
PHOTOS = int(os.environ.get("FASTCYCLEGAN_BENCH_PHOTOS", 120))
AT_ONCE = 20


def _photos() -> list[Path]:
    root = os.environ.get("FASTCYCLEGAN_DATA")
    if not root or checkout() is None:
        pytest.skip(f"FASTCYCLEGAN_DATA names no photographs, or {VARIABLE} no checkout")
    return sorted(Path(root, "horse2zebra/testA").iterdir())[:PHOTOS]


def _net() -> ResnetGenerator:
    net = ResnetGenerator()
    init_weights(net, 0.02, torch.Generator().manual_seed(0))
    return net.eval().to(DEVICE)


def _theirs() -> Callable[[Sequence[Path], Path], None]:
    sys.path.insert(0, str(checkout()))
    networks, util = (importlib.import_module(x) for x in ("models.networks", "util.util"))
    gpus = [0] if DEVICE.type == "cuda" else []
    G = networks.define_G(3, 3, 64, "resnet_9blocks", "instance", False, "normal", 0.02, gpus)

    def loop(photos: Sequence[Path], folder: Path) -> None:
        for path in photos:
            pixels = np.array(Image.open(path).convert("RGB"))
            real = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1)
            with torch.no_grad():
                fake = G(real.to(DEVICE))
            util.save_image(util.tensor2im(fake), str(folder / f"{path.stem}_fake.png"))

    return loop


def _ours(dtype: torch.dtype) -> Callable[[Sequence[Path], Path], None]:
    translator = Translator(_net(), dtype)
    config = TranslateConfig(weights="", input="", output="")

    def loop(photos: Sequence[Path], folder: Path) -> None:
        jobs = [Job(path, folder / f"{path.stem}.png", 256 * 256) for path in photos]
        assert all(problem is None for _, problem in translate_files(translator, jobs, config))

    return loop


@cache
def img_per_s() -> dict[str, float]:
    """Of every row."""
    photos = _photos()
    loops = dict(zip(ROWS, (_theirs(), _ours(torch.float32), _ours(torch.bfloat16)), strict=True))
    seconds = dict.fromkeys(ROWS, 0.0)
    with TemporaryDirectory() as folder:
        for loop in loops.values():
            loop(photos[:2], Path(folder))
        for first in range(0, len(photos), AT_ONCE):
            for name, loop in loops.items():
                start = time.perf_counter()
                loop(photos[first : first + AT_ONCE], Path(folder))
                seconds[name] += time.perf_counter() - start
    return {name: len(photos) / seconds[name] for name in ROWS}


@pytest.mark.parametrize("row", ROWS)
def bench_translate(benchmark, row):
    speeds = img_per_s()
    benchmark.group = f"translate {len(_photos())} photographs of 256 px, {DEVICE}"
    benchmark.extra_info |= {
        "img_per_s": speeds[row],
        f"speedup_over {ROWS[0]}": speeds[row] / speeds[ROWS[0]],
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(img_per_s, rounds=1)
