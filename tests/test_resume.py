"""A run that was stopped and continued is the run that never stopped, bit for bit on a CPU."""

import subprocess
import sys

import pytest
import torch

from fastcyclegan.runs import metrics
from fastcyclegan.steps.cyclegan import STEPS
from house_rules import ROOT
from tiny_runs import final_state, run_on_data

# Epochs of five steps, full rate in the first of them, falling in the others; ticks of two steps.
DECAY = ["--n_epochs", "1", "--n_epochs_decay", "2"]
# All that can be stored: running statistics, dropout's generator, the plateau.
ALL = ["--norm", "batch", "--dropout", "--lr_policy", "plateau", "--n_epochs", "2"]
ALL += ["--n_epochs_decay", "0"]


def outcome(root):
    """Everything that a run leaves behind but the time it took and when it was interrupted."""
    rows = metrics.read_metrics(root / "metrics.jsonl")
    kept = [row for row in rows if row.get("event") != "interrupted"]
    return *final_state(root), [{k: v for k, v in row.items() if k != "img_per_s"} for row in kept]


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("stop_at", [3, 4, 5, 6, 10])
def test_inside_an_epoch_at_its_end_and_where_the_rate_begins_to_fall(here, at, stop_at):
    assert run_on_data(*DECAY, "--name", "whole") == 0
    at["stop"] = [stop_at - 1]
    assert run_on_data(*DECAY, "--name", "parts") == 143
    assert run_on_data(*DECAY, "--name", "parts") == 0
    whole, parts = (outcome(here / "checkpoints" / name) for name in ("whole", "parts"))
    assert same(whole, parts)
    rates = [row["lr_G"] for row in whole[-1]]
    assert rates[0] == 2e-4 and rates[-1] < rates[3] < rates[0]


def test_any_number_of_interruptions_leaves_no_double_and_no_missing_row(here, at):
    assert run_on_data(*DECAY, "--name", "whole") == 0
    stops = [0, 1, 2, 6, 7, 12]
    at["stop"] = list(stops)
    for _ in stops:
        assert run_on_data(*DECAY, "--name", "parts") == 143
    assert run_on_data(*DECAY, "--name", "parts") == 0
    whole, parts = (outcome(here / "checkpoints" / name) for name in ("whole", "parts"))
    assert same(whole, parts)
    assert [row["step"] for row in parts[-1]] == [2, 4, 6, 8, 10, 12, 14, 15]


def test_a_killed_run_repeats_what_was_not_saved(here, monkeypatch):
    """As after SIGKILL: rows of steps behind the checkpoint are there, and come once."""
    words = [*DECAY, "--save_every_steps", "4"]
    assert run_on_data(*words, "--name", "whole") == 0
    fused = STEPS["fused"]

    def killed(model, real_A, real_B, number):
        if int(number[0]) == 11:
            raise KeyboardInterrupt
        return fused(model, real_A, real_B, number)

    monkeypatch.setitem(STEPS, "fused", killed)
    assert run_on_data(*words, "--name", "parts") == 130
    monkeypatch.setitem(STEPS, "fused", fused)
    assert run_on_data(*words, "--name", "parts") == 0
    assert same(*(outcome(here / "checkpoints" / name) for name in ("whole", "parts")))


def test_after_going_back_a_run_resumes_with_the_same_images(here, at):
    words = [*DECAY, "--save_every_steps", "4", "--max_skips", "2"]
    at["spoil"] = [6, 7]
    assert run_on_data(*words, "--name", "whole") == 0
    at["spoil"], at["stop"] = [6, 7], [10]
    assert run_on_data(*words, "--name", "parts") == 143
    assert run_on_data(*words, "--name", "parts") == 0
    whole, parts = (outcome(here / "checkpoints" / name) for name in ("whole", "parts"))
    assert same(whole, parts) and whole[2]["skips"]["offset"] == 5
    assert [row["event"] for row in whole[-1] if row["kind"] == "event"] == ["went back"]


def test_other_options_are_refused_by_name_unless_forced(here, capsys):
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    words = ["--name", "mine", "--steps", "4", "--lambda_A", "5", "--lr", "0.001"]
    assert run_on_data(*words) == 2
    refusal = capsys.readouterr().err
    assert "lambda_A: 10.0 there, 5.0 now; lr: 0.0002 there, 0.001 now" in refusal
    assert "--resume_force" in refusal
    assert run_on_data(*words, "--resume_force") == 0
    changed = "lambda_A: 10.0 there, 5.0 now; lr: 0.0002 there, 0.001 now"
    said = capsys.readouterr().out
    assert f"--resume_force: going on with other options ({changed})" in said
    rows = metrics.read_metrics(here / "checkpoints/mine/metrics.jsonl")
    forced = [row for row in rows if row.get("event") == "forced"]
    assert [(row["step"], row["changed"]) for row in forced] == [(2, changed)]
    assert [row["lr_G"] for row in rows if row["kind"] == "train"] == [2e-4, 1e-3]
    # From now on these are the run's options.
    assert run_on_data(*words, "--steps", "6") == 0
    assert run_on_data("--name", "mine", "--steps", "8") == 2


def test_force_cannot_make_other_networks_fit_and_loses_nothing(here, capsys):
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    before = {p: p.read_bytes() for p in (here / "checkpoints").rglob("*") if p.is_file()}
    for words in (["--ngf", "6"], ["--pool_size", "5"], ["--netG", "resnet_2blocks"]):
        assert run_on_data("--name", "mine", "--steps", "4", "--resume_force", *words) == 2
        error = capsys.readouterr().err
        assert "step-00000002 does not fit these options: " in error and error.count("\n") == 1
    assert run_on_data("--resume_force", "--steps", "4") == 2
    assert "--resume_force needs --name" in capsys.readouterr().err
    after = {p: p.read_bytes() for p in (here / "checkpoints").rglob("*") if p.is_file()}
    assert after == before


def test_milestones_are_saved_and_stay(here):
    words = [*DECAY, "--milestone_epochs", "1", "--save_epoch_freq", "99", "--keep", "1"]
    assert run_on_data(*words, "--name", "mine") == 0
    saved = sorted(path.name for path in (here / "checkpoints/mine/ckpt").iterdir())
    assert saved == ["step-00000005", "step-00000010", "step-00000015"]


COMPILED = """
import signal
import test_resume as t
from pathlib import Path
from fastcyclegan.steps import cyclegan

plans = {"stop": []}
fused = cyclegan.STEPS["fused"]

def step(model, real_A, real_B, number):
    if plans["stop"] and int(number[0]) == plans["stop"][0]:
        plans["stop"].pop()
        signal.raise_signal(signal.SIGTERM)
    return fused(model, real_A, real_B, number)

cyclegan.STEPS["fused"] = step
words = [*t.DECAY, "--compile"]
assert t.run_on_data(*words, "--name", "whole") == 0
whole = t.outcome(Path("checkpoints/whole"))
for stop_at in (3, 5, 10):
    plans["stop"] = [stop_at - 1]
    name = f"parts{stop_at}"
    assert t.run_on_data(*words, "--name", name) == 143
    assert t.run_on_data(*words, "--name", name) == 0
    assert t.same(whole, t.outcome(Path("checkpoints") / name)), stop_at
print("same")
"""


@pytest.mark.slow
def test_compiled_runs_resume_as_the_same_run(here, monkeypatch):
    """In a process of its own: compiled code and its caches stay out of the other tests."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("same\n"), done.stderr[-2000:]
    assert "eager instead" not in done.stdout


SYSTEM_COMPILED = """
import sys
from pathlib import Path
import {module} as t
from test_resume import same
from tiny_runs import final_state

words = [*{words!r}, "--compile"]
assert t.run(*words, "--name", "whole", "--steps", "4") == 0
for steps in ("2", "4"):
    assert t.run(*words, "--name", "parts", "--steps", steps) == 0
whole, parts = (final_state(Path("checkpoints") / name) for name in ("whole", "parts"))
assert same(whole[:2], parts[:2])
print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("test_systems", ["article", "--no_fit_schedule"]),
        ("test_systems", ["johnson", "--no_fit_schedule"]),
        ("test_train_dcgan", ["--dataroot", "data/trainA"]),
    ],
    ids=["article", "johnson", "dcgan"],
)
def test_compiled_runs_of_other_systems_resume(here, monkeypatch, module, words):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    script = SYSTEM_COMPILED.format(module=module, words=words)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("same\n"), done.stderr[-2000:]
    assert "eager instead" not in done.stdout


@pytest.mark.cuda
@pytest.mark.parametrize("words", ["", "--precision bf16 --norm batch --dropout"])
@pytest.mark.parametrize("graph", ["off", "on"])
def test_a_run_on_a_gpu_resumes_as_the_same_run(here, words, graph):
    """One graph of many replays or two of fewer, behind other first steps."""
    words = ["--device", "cuda", "--deterministic", "--cuda_graph", graph, *words.split()]
    for name, stops in (("whole", [14]), ("parts", [6, 14])):
        for stop in stops:
            assert run_on_data(*words, "--name", name, "--steps", str(stop)) == 0
    whole, parts = (final_state(here / "checkpoints" / name) for name in ("whole", "parts"))
    assert same(whole[:2], parts[:2])
