"""Run folders for the tests of the report, made without training."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from fastcyclegan.config import TrainConfig
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.steps.losses import NAMES


def make_run(root: Path, steps: int = 40, previews: int = 4, **options: object) -> RunFolder:
    """A run of ``steps`` steps, a row for each, with ``previews`` pictures of noise."""
    folder = RunFolder(root)
    for part in (folder.previews, folder.ckpt, folder.weights):
        part.mkdir(parents=True)
    train = asdict(TrainConfig()) | options
    folder.config.write_text(
        json.dumps(
            {"train": train, "total_steps": 2 * steps, "finished": False, "created": 1.7e9}
            | {"machine": {"device": "a GPU"}, "version": "0", "options": {"precision": "bf16"}}
        )
    )
    log = MetricsLog(folder.metrics)
    for step in range(1, steps + 1):
        losses = {name: 1 + 1 / (step + i) for i, name in enumerate(NAMES)}
        log.write("train", step, images=step, epoch=1, lr_G=2e-4, img_per_s=9.0, **losses)
    log.write("eval", steps, psnr_B=20.5)
    for i in range(1, previews + 1):
        make_preview(folder, i * steps // previews, seed=i)
    return folder


def make_preview(
    folder: RunFolder, step: int, seed: int = 0, size: tuple[int, int] = (40, 90)
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder.preview(step))
