"""Large images in bands: seconds, peak memory and difference from the whole, by the command itself.

Run with ``pytest bench/bench_tile.py --benchmark-only -m slow``: ngf 16, nine blocks, a CPU, fp32.
8192 px takes some minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.models import ResnetGenerator
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.weights import save_network

# Runs the command in a process of its own and prints the most memory that it ever held, in bytes.
MEASURE = """
import json, resource, subprocess, sys
subprocess.run([sys.executable, "-m", "fastcyclegan.translate", *sys.argv[1:]], check=True)
print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
"""


def _photograph(path: Path, side: int) -> None:
    """Smooth colours with noise: what the norms see changes from place to place."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))
    pixels ^= rng.integers(0, 16, pixels.shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=1)


def _translate(folder: Path, output: str, *words: str) -> tuple[float, int, list[str]]:
    """Seconds, peak bytes and what was printed."""
    places = "--weights", f"{folder}/G.safetensors", "--input", f"{folder}/in.png"
    command = [sys.executable, "-c", MEASURE, *places, "--output", f"{folder}/{output}"]
    start = time.perf_counter()
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    *told, peak = done.stdout.splitlines()
    return time.perf_counter() - start, json.loads(peak), told


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tile"), [(2048, 512), (8192, 1024)])
def bench_tile(benchmark, tmp_path, side, tile):
    net = ResnetGenerator(ngf=16)
    init_weights(net, 0.02, torch.Generator().manual_seed(0))
    save_network(tmp_path / "G.safetensors", net, step=0)
    _photograph(tmp_path / "in.png", side)
    words = "--device", "cpu", "--precision", "fp32"
    seconds, peak, told = _translate(tmp_path, "tiled.png", "--tile", str(tile), *words)
    info = {"seconds": seconds, "peak_GB": peak / 1e9, "told": told[0]}
    if side <= 2048:
        whole_seconds, whole_peak, _ = _translate(tmp_path, "whole.png", *words)
        tiled, whole = (np.array(Image.open(tmp_path / n)) for n in ("tiled.png", "whole.png"))
        difference = int(np.abs(tiled.astype(int) - whole.astype(int)).max())
        info |= {"whole_seconds": whole_seconds, "whole_peak_GB": whole_peak / 1e9}
        info["greatest_difference_levels"] = difference
        assert difference <= 1
    else:
        assert peak < 4e9
    benchmark.extra_info |= info | {"threads": torch.get_num_threads()}
    benchmark.pedantic(lambda: None)
