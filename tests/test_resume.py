"""A run that was stopped, killed, sent back or forced goes on as it should, with each row once."""

import torch

from fastcyclegan.runs import metrics
from fastcyclegan.steps.cyclegan import STEPS
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
