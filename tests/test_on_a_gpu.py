"""The commands on a GPU, which they choose of themselves; what they compute is tested elsewhere."""

import pytest
import torch

from fastcyclegan import command, evaluate, sample, train, translate
from tiny_runs import TINY

pytestmark = pytest.mark.cuda
DCGAN = ["--model", "dcgan", "--ngf", "4", "--ndf", "4", "--nz", "6", "--crop_size", "16"]
DCGAN += ["--load_size", "16", "--batch_size", "4", "--steps", "6"]
# without what only the CPU is asked for
CYCLEGAN = [*TINY[4:], "--dataroot", "data", "--steps", "6"]


def run(main, *words: str) -> None:
    torch.cuda.init()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert command.run(main, list(words)) == 0
    assert torch.cuda.max_memory_allocated() > before, "nothing was computed on the GPU"


@pytest.mark.parametrize("words", ["", "--compile", "--updates sequential"])
def test_cyclegan(here, words):
    run(train.main, *CYCLEGAN, "--name", "mine", *words.split())
    given = ["--weights", "checkpoints/mine", "--input", "data/trainA", "--output", "out"]
    run(translate.main, *given)
    assert len(list((here / "out").glob("*"))) == 5
    given = ["--weights", "checkpoints/mine", "--input", "data/trainA", "--real", "data/trainB"]
    run(evaluate.main, *given)


def test_dry_run(here, capsys):
    run(train.main, *CYCLEGAN, "--dry_run")
    told = capsys.readouterr().out
    assert "bf16 on cuda:0" in told and "measured over" in told and "fit: fits" in told


def test_dcgan(here):
    run(train.main, *DCGAN, "--dataroot", "data/trainA", "--name", "mine")
    run(sample.main, "--weights", "checkpoints/mine", "--output", "grid.png")
    assert (here / "grid.png").is_file()
