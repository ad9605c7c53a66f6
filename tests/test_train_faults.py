"""What a training does when something goes wrong: nothing is lost, and one line says what."""

import signal

import pytest
import torch

from fastcyclegan import recorder, training
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog, read_metrics
from fastcyclegan.steps.cyclegan import STEPS
from tiny_runs import run_on_data


@pytest.fixture
def at_step(monkeypatch):
    """A function that lets ``act(model, losses)`` take part in step number ``n``."""

    def install(n, act):
        fused, calls = STEPS["fused"], []

        def step(model, *arguments):
            calls.append(1)
            losses = fused(model, *arguments)
            return act(model, losses) if len(calls) == n else losses

        monkeypatch.setitem(STEPS, "fused", step)

    return install


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(here, at_step, capsys):
    at_step(4, lambda model, losses: losses * float("nan"))
    assert run_on_data("--steps", "8", "--save_every_steps", "1") == 4
    assert "error: a loss or a weight is not finite at step 4" in capsys.readouterr().err
    root = here / "checkpoints/0001"
    assert latest_checkpoint(RunFolder(root))[0] == 3
    rows = read_metrics(root / "metrics.jsonl")
    assert rows[-1]["event"] == "not finite"


def test_weights_that_are_not_finite_are_never_saved(here, at_step, capsys):
    """Also between ticks, where the losses have not been read yet."""

    def spoil(model, losses):
        with torch.no_grad():
            model.weights["D_B"].masters[0].fill_(float("inf"))
        return losses

    at_step(3, spoil)
    words = ["--steps", "40", "--save_every_steps", "1", "--print_freq", "30"]
    assert run_on_data(*words) == 4
    assert "not finite at step 3" in capsys.readouterr().err
    assert latest_checkpoint(RunFolder(here / "checkpoints/0001"))[0] == 2


def test_a_save_that_fails_is_told_and_gives_code_5(here, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "save_checkpoint", full)
    assert run_on_data("--steps", "2") == 5
    captured = capsys.readouterr()
    assert "warning: the checkpoint of step 2 could not be saved" in captured.out
    assert captured.err.startswith("error: the checkpoint of step 2 could not be saved")


def test_metrics_that_cannot_be_written_do_not_stop_the_training(here, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsLog, "write", full)
    assert run_on_data("--steps", "4") == 0
    assert capsys.readouterr().out.count("metrics.jsonl: No space left on device") == 1
    assert latest_checkpoint(RunFolder(here / "checkpoints/0001"))[0] == 4


def test_damaged_checkpoints_are_never_trained_over(here, capsys):
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    root = here / "checkpoints/mine"
    weights = root / "ckpt/step-00000002/G_A.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert run_on_data("--name", "mine", "--steps", "4") == 2
    assert "no checkpoint in checkpoints/mine/ckpt is sound" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_a_finished_run_is_left_as_it_is(here, capsys):
    """Also when its last tick was cut short."""
    assert run_on_data("--name", "mine", "--steps", "3") == 0
    log = here / "checkpoints/mine/metrics.jsonl"
    before = log.read_bytes()
    assert [row["step"] for row in read_metrics(log)] == [2, 3]
    assert run_on_data("--name", "mine", "--steps", "3") == 0
    assert "is finished at step 3: raise --n_epochs" in capsys.readouterr().out
    assert log.read_bytes() == before
    assert run_on_data("--name", "fitted", "--steps", "3", "--fit_schedule") == 0
    assert run_on_data("--name", "fitted", "--steps", "3", "--fit_schedule") == 0
    assert "was fitted into --steps; give another --name" in capsys.readouterr().out


def test_a_signal_in_the_last_step_ends_a_finished_run(here, at_step):
    def interrupt(model, losses):
        signal.raise_signal(signal.SIGTERM)
        return losses

    at_step(3, interrupt)
    assert run_on_data("--name", "mine", "--steps", "3") == 0
    assert RunFolder(here / "checkpoints/mine").finished


def test_two_processes_do_not_share_a_run(here, at_step, capsys):
    codes = []

    def second(model, losses):
        codes.append(run_on_data("--name", "mine", "--steps", "3"))
        codes.append(run_on_data("--steps", "3"))
        return losses

    at_step(2, second)
    assert run_on_data("--name", "mine", "--steps", "3") == 0
    assert codes == [2, 0]
    assert "run checkpoints/mine is in use by another process" in capsys.readouterr().err
    assert (here / "checkpoints/0001").is_dir()
    steps = [row["step"] for row in read_metrics(here / "checkpoints/mine/metrics.jsonl")]
    assert steps == [2, 3]


def test_an_unusable_compiler_is_told_and_the_training_runs_eager(here, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/bin/false")
    assert run_on_data("--steps", "2", "--compile") == 0
    out = capsys.readouterr().out
    assert out.count("--compile: /bin/false cannot compile with Python's headers") == 1


def test_what_training_uses_is_checked_before_images_are_read(here, monkeypatch, capsys):
    def never(*arguments):
        raise AssertionError("images were read first")

    monkeypatch.setattr(training, "make_system", never)
    (here / "afile").write_text("x")
    for words, said in (
        (["--name", "../x"], "cannot name a run"),
        (["--checkpoints_dir", "afile/deep"], "--checkpoints_dir afile/deep"),
        (["--load_size", "28"], "--load_size 28 is smaller"),
        (["--dataroot", ""], "--dataroot '': must not be empty"),
    ):
        assert run_on_data(*words) == 2
        assert said in capsys.readouterr().err
