"""Benches that no other file of tests has: that they are collected, and what they refuse."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import bench_data, bench_optimiser, bench_train
from house_rules import ROOT
from tiny_runs import make_images

# A bench of each group: ops, steps, data, optimiser, end to end.
GROUPS = {
    "bench_instance_norm.py::bench_instance_norm[",
    "bench_step.py::bench_small_step[",
    "bench_dcgan.py::bench_dcgan_step[",
    "bench_data.py::bench_decode[",
    "bench_data.py::bench_batches[",
    "bench_optimiser.py::bench_optimiser[",
    "bench_train.py::bench_train[",
}


@pytest.fixture
def small(monkeypatch):
    """A few small pictures, and no photographs."""
    monkeypatch.delenv("FASTCYCLEGAN_DATA", raising=False)
    for name, value in (("COUNT", 3), ("LOAD", 30), ("CROP", 24)):
        monkeypatch.setattr(bench_data, name, value)
    bench_data.folder.cache_clear()
    yield
    bench_data.folder.cache_clear()


def test_the_five_groups_are_collected():
    command = [sys.executable, "-m", "pytest", "bench/", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:]
    assert all(f"bench/{name}" in done.stdout for name in GROUPS)


def test_pipelines_that_make_different_pixels_are_refused(small, monkeypatch):
    bench_data.agree()
    right = bench_data.Photographs.__getitem__
    wrong = {"__getitem__": lambda self, index: right(self, index).flip(2)}
    monkeypatch.setattr(bench_data, "Photographs", type("Wrong", (bench_data.Photographs,), wrong))
    with pytest.raises(AssertionError, match="nothing is recorded"):
        bench_data.agree()


@pytest.mark.parametrize("count", [None, 2])
def test_a_folder_with_too_few_photographs_is_skipped(small, monkeypatch, tmp_path, count):
    if count:
        make_images(tmp_path / "horse2zebra/trainA", count)
    monkeypatch.setenv("FASTCYCLEGAN_DATA", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=f"FASTCYCLEGAN_DATA has {count or 0} of 3"):
        bench_data.agree()


def test_the_photographs_that_are_named_are_taken(small, monkeypatch, tmp_path):
    make_images(tmp_path / "horse2zebra/trainA", 5)
    monkeypatch.setenv("FASTCYCLEGAN_DATA", str(tmp_path))
    bench_data.agree()
    names = sorted(path.name for path in Path(bench_data.folder().name).iterdir())
    assert names == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("way", bench_optimiser.WAYS)
def test_an_optimiser_that_takes_another_step_is_refused(monkeypatch, way):
    """A second one, of weights that one was asked of."""
    monkeypatch.setattr(bench_optimiser, "shapes", lambda: [torch.Size([3, 2]), torch.Size([4])])
    monkeypatch.setattr(bench_optimiser, "expected", bench_optimiser.expected.__wrapped__)
    step, weights = bench_optimiser.torch_way(way)
    step()
    assert bench_optimiser.agreed(way, weights) <= bench_optimiser.LARGEST_ERROR
    step()
    with pytest.raises(AssertionError, match="nothing is recorded"):
        bench_optimiser.agreed(way, weights)


@pytest.mark.parametrize(("device", "words"), [("cpu", ["--compile"]), ("cuda", [])])
def test_a_training_that_needs_a_compiler_is_skipped_without_one(
    monkeypatch, tmp_path, device, words
):
    monkeypatch.setattr(bench_train, "lack_of_compiler", lambda: "no C++ compiler found")
    monkeypatch.setattr(bench_train, "DEVICE", torch.device(device))
    with pytest.raises(pytest.skip.Exception, match="compiler found"):
        bench_train.bench_train(None, tmp_path, words)
