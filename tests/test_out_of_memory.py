"""Out of GPU memory: one line with what was asked, what there is and what fits; code 3."""

import pytest
import torch

from fastcyclegan import out_of_memory
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.steps.cyclegan import STEPS
from fastcyclegan.systems.cyclegan import CycleGANSystem
from tiny_runs import run_on_data

# What torch says (2.13).
TORCH = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 7.92 GiB of "
    "which 803.44 MiB is free. Including non-PyTorch memory, this process has 7.13 GiB memory in "
    "use. Of the allocated memory 6.71 GiB is allocated by PyTorch"
)


@pytest.mark.parametrize("asked", [1, 2, 3, 7, 8, 64, 1000])
def test_the_largest_batch_is_found_in_few_trials(asked):
    for limit in {0, 1, 2, asked // 2, asked - 1}:
        tried = []

        def fits(n, limit=limit, tried=tried):
            tried.append(n)
            return n <= limit

        assert out_of_memory.largest(fits, asked) == min(limit, asked - 1)
        assert len(tried) <= asked.bit_length() and all(0 < n < asked for n in tried)


def test_the_line_names_what_was_asked_what_there_is_and_what_fits():
    line = out_of_memory.told(TORCH, (6 * 2**30, 8 * 2**30), 16, 11)
    assert line == (
        "out of memory: a step of --batch_size 16 asked for 1.50 GiB more than there is; the GPU "
        "has 8.0 GiB, and 6.0 GiB are free between two steps; --batch_size 11 is the largest that "
        "fits"
    )
    line = out_of_memory.told("CUDA error: out of memory", (0, 2**30), 1, 0)
    assert "asked for more than there is" in line
    assert line.endswith("not even --batch_size 1 fits: lower --crop_size, --ngf or --ndf")


def test_a_training_that_runs_out_of_memory_ends_with_code_3(here, monkeypatch, capsys):
    """With the error that a GPU raises, from the third step on and for more than 2 images."""
    fused, calls = STEPS["fused"], []

    def small(model, real_A, real_B, number):
        calls.append(len(real_A))
        if len(calls) > 2 and len(real_A) > 2:
            raise torch.OutOfMemoryError(TORCH)
        return fused(model, real_A, real_B, number)

    monkeypatch.setitem(STEPS, "fused", small)
    monkeypatch.setattr(out_of_memory, "memory", lambda device: (2**30, 2**31))
    words = ["--steps", "5", "--batch_size", "5", "--save_every_steps", "1", "--name", "mine"]
    assert run_on_data(*words) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory: a step of --batch_size 5 asked for 1.50 GiB")
    assert error.endswith("--batch_size 2 is the largest that fits\n") and error.count("\n") == 1
    assert latest_checkpoint(RunFolder(here / "checkpoints/mine"))[0] == 2
    assert calls == [5, 5, 5, 2, 3]


def test_too_little_memory_for_a_preview_costs_that_preview(here, monkeypatch, capsys):
    """It says nothing of --batch_size, which fits, and what is due is saved."""
    show, calls = CycleGANSystem.show, []

    def small(self):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError(TORCH)
        return show(self)

    monkeypatch.setattr(CycleGANSystem, "show", small)
    assert run_on_data("--steps", "8", "--save_every_steps", "4", "--name", "mine") == 0
    [warning] = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warning.startswith("warning: no preview of step 4: CUDA out of memory. Tried to")
    root = here / "checkpoints/mine"
    assert [path.name for path in (root / "previews").iterdir()] == ["step-00000008.png"]
    saved = sorted(path.name for path in (root / "ckpt").iterdir())
    assert saved == ["step-00000004", "step-00000008"]


@pytest.mark.cuda
def test_a_gpu_that_is_too_small_is_told(here, capsys):
    """A fraction of the GPU stands for a small one."""
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2 * 2**30 / total))
    words = ["--device", "cuda", "--ngf", "64", "--batch_size", "4096", "--steps", "2"]
    try:
        assert run_on_data(*words, "--crop_size", "32") == 3
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    error = capsys.readouterr().err
    assert "--batch_size 4096 asked for" in error and "is the largest that fits" in error
