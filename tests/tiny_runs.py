"""Small trainings through the command, for the tests of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from fastcyclegan import command, train
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint
from fastcyclegan.runs.folder import RunFolder

TINY_WORDS = (
    "--device cpu --precision fp32 --netG resnet_1blocks --ngf 4 --ndf 4 --load_size 36 "
    "--crop_size 32 --pool_size 3 --print_freq 2 --display_freq 4"
)
TINY = TINY_WORDS.split()


def make_images(folder: Path, n: int, size: tuple[int, int] = (40, 44), seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def run(*words: str) -> int:
    return command.run(train.main, [*TINY, *words])


def run_on_data(*words: str) -> int:
    return run("--dataroot", "data", *words)


def final_state(root: Path) -> tuple:
    """What the newest checkpoint of the run folder ``root`` holds."""
    _, path = latest_checkpoint(RunFolder(root))
    return load_checkpoint(path)
