"""End to end: what the train command makes, from its start to its weights on the disk.

    pytest bench/bench_train.py --benchmark-only

The preset ``small`` on toy images, with and without ``--compile``. ``img_per_s`` is what the
command measured of its last steps; the time of the row is the whole command's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.ceilings import DEVICE, lack_of_compiler

STEPS = 40
ROOT = Path(__file__).resolve().parent.parent


def train(folder: Path, words: list[str]) -> tuple[float, float]:
    """img/s of the last tick of a training in ``folder``, and the MiB of main memory it took."""
    command = [sys.executable, "-m", "fastcyclegan.train", "--preset", "small", "--name", "run"]
    command += ["--steps", str(STEPS), "--print_freq", "20", "--display_freq", "1000000"]
    command += ["--resume", "none", "--device", str(DEVICE)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    output = folder / "output.txt"
    with open(output, "w") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([*command, *words], cwd=folder, env=environment, **streams)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output.read_text()[-500:]
    lines = (folder / "checkpoints/run/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    assert rows[-1]["step"] == STEPS
    return rows[-1]["img_per_s"], usage.ru_maxrss / 1024


@pytest.mark.parametrize("words", [[], ["--compile"]], ids=["eager", "compiled"])
def bench_train(benchmark, tmp_path, words: list[str]) -> None:
    lack = lack_of_compiler()
    if lack and (words or DEVICE.type == "cuda"):  # where eager steps need the kernels
        pytest.skip(lack)
    benchmark.group = f"train command, preset small, {STEPS} steps, {DEVICE}"
    speed, peak = benchmark.pedantic(train, (tmp_path, words), rounds=1)
    benchmark.extra_info |= {"img_per_s": speed, "peak_main_memory_MiB": peak}
    benchmark.extra_info |= {"threads": torch.get_num_threads()}
