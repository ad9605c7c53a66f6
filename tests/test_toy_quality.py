"""The README command's promise: what it learns from the toy images is right, not only plausible."""

import pytest

from fastcyclegan import command, train
from fastcyclegan.runs.metrics import read_metrics


@pytest.mark.slow
def test_the_small_preset_learns_the_toy_domains(tmp_path, monkeypatch):
    """Held-out PSNR, both ways: 5 dB above the input, 3 dB above the best affine colour map."""
    monkeypatch.chdir(tmp_path)
    assert command.run(train.main, ["--device", "cpu"]) == 0
    rows = read_metrics(tmp_path / "checkpoints/0001/metrics.jsonl")
    last = [row for row in rows if row["kind"] == "eval"][-1]
    for domain in "AB":
        score = last[f"psnr_{domain}"]
        assert score >= last[f"input_psnr_{domain}"] + 5
        assert score >= last[f"affine_psnr_{domain}"] + 3


@pytest.mark.slow
@pytest.mark.parametrize("pixel_range", ["linear255", "tanh255"])
def test_raw_pixels_are_learnt_as_well(pixel_range, tmp_path, monkeypatch):
    """In fewer steps, so by a smaller margin: 2 dB above the best affine colour map."""
    monkeypatch.chdir(tmp_path)
    words = ["--device", "cpu", "--preset", "small", "--steps", "300"]
    assert command.run(train.main, [*words, "--pixel_range", pixel_range]) == 0
    rows = read_metrics(tmp_path / "checkpoints/0001/metrics.jsonl")
    last = [row for row in rows if row["kind"] == "eval"][-1]
    for domain in "AB":
        assert last[f"psnr_{domain}"] >= last[f"affine_psnr_{domain}"] + 2
