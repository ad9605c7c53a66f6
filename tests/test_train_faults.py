"""What a training does when something goes wrong: nothing is lost, and one line says what."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from fastcyclegan import preparation, recorder
from fastcyclegan.models.weights import load_network
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog, read_metrics
from fastcyclegan.steps.cyclegan import STEPS
from tiny_runs import final_state, run_on_data


@pytest.fixture
def at_step(monkeypatch):
    """A function that lets ``act(model)`` take part in the calls ``n`` of the step, before it."""

    def install(n, act):
        fused, calls = STEPS["fused"], []

        def step(model, *arguments):
            calls.append(1)
            if len(calls) in (n if isinstance(n, list | range) else [n]):
                arguments = act(model, *arguments) or arguments
            return fused(model, *arguments)

        monkeypatch.setitem(STEPS, "fused", step)

    return install


def spoil_images(model, real_A, real_B, number):
    return real_A * float("nan"), real_B, number


def spoil_weights(model, *arguments):
    with torch.no_grad():
        model.weights["D_B"].masters[0].fill_(float("inf"))


def events(root):
    return [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "event"]


def test_a_step_that_is_not_finite_is_skipped_named_and_stored(here, at_step, capsys):
    """The other steps of its tick are counted, and it is as if it had not been."""
    at_step(4, spoil_images)
    assert run_on_data("--name", "mine", "--steps", "6", "--pixel_range", "tanh255") == 0
    root = here / "checkpoints/mine"
    rows = read_metrics(root / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == [2, 4, 6] and all(row["G_A"] for row in train)
    [event] = events(root)
    names_A, names_B = event["names"]["A"], event["names"]["B"]
    assert (event["step"], event["event"], event["repro"]) == (4, "skipped", "repro-step-00000003")
    said = f"1 step was not finite and changed nothing, the last one step 4 (A {names_A[0]}; B "
    assert said in capsys.readouterr().out
    about = json.loads((root / "repro-step-00000003/repro.json").read_text())
    assert about["names"] == {"A": names_A, "B": names_B} and about["networks_of_this_step"]
    assert about["not_finite"][0].startswith("gradient of G_A/")
    images = load_file(root / "repro-step-00000003/images.safetensors")
    assert images["A"].shape == (1, 3, 32, 32) and images["A"].isfinite().all()
    for name in ("G_B", "D_B"):
        net, told = load_network(root / f"repro-step-00000003/{name}.safetensors")
        assert all(p.isfinite().all() for p in net.parameters())
        assert told["pixel_range"] == "tanh255"
    moments = final_state(root)[1]["G_A/model.1.weight/step"]
    assert moments == 5


def test_after_many_skips_in_a_row_it_goes_back_and_takes_other_images(here, at_step, capsys):
    seen = []

    def spoil(model, real_A, *others):
        seen.append(real_A)
        return spoil_images(model, real_A, *others)

    at_step(range(5, 8), spoil)
    words = ["--steps", "9", "--save_every_steps", "4", "--max_skips", "2", "--name", "mine"]
    assert run_on_data(*words) == 0
    out = capsys.readouterr().out
    assert "2 steps in a row up to step 6 were not finite (first of all gradient of" in out
    assert "going on from the checkpoint of step 4 with other images" in out
    root = here / "checkpoints/mine"
    rows = read_metrics(root / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4, 6, 8, 9]
    assert [(row["event"], row["step"]) for row in events(root)] == [
        ("went back", 4),
        ("skipped", 5),
    ]
    assert final_state(root)[2]["skips"] == {**{"in_a_row": 0, "offset": 5, "went_back_to": 4}}


def test_weights_that_are_not_finite_are_never_saved(here, at_step, capsys):
    """Also between ticks, where the losses have not been read yet."""
    at_step(3, spoil_weights)
    words = ["--steps", "4", "--save_every_steps", "1", "--print_freq", "30", "--name", "mine"]
    assert run_on_data(*words) == 0
    out = capsys.readouterr().out
    assert "weights up to step 3 were not finite (first of all D_B/model.0.weight)" in out
    _, tensors, state = final_state(here / "checkpoints/mine")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert state["skips"]["offset"] == 5


def test_what_does_not_become_finite_stops_with_code_4(here, at_step, capsys):
    at_step(range(4, 99), spoil_images)
    words = ["--steps", "30", "--save_every_steps", "1", "--max_skips", "2", "--name", "mine"]
    assert run_on_data(*words) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: 2 steps in a row up to step ") and error.count("\n") == 1
    assert "again, with other images, and nothing of it was saved: checkpoints/mine/ckpt/" in error
    root = here / "checkpoints/mine"
    assert events(root)[-1]["event"] == "not finite"
    done, path = latest_checkpoint(RunFolder(root))
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(path)[0]["G_A"].values())
    assert f"{path.name} stands" in error and done >= 3


def test_without_a_checkpoint_it_stops_at_once(here, at_step, capsys):
    at_step(range(1, 99), spoil_images)
    assert run_on_data("--steps", "30", "--max_skips", "2") == 4
    assert "and there is no checkpoint yet; try a lower --lr" in capsys.readouterr().err
    assert (here / "checkpoints/0001/repro-step-00000001/repro.json").is_file()


def test_a_row_of_skips_goes_on_behind_an_interruption(here, at_step, capsys):
    """Two skips before it and one behind it are three in a row."""

    def interrupt(model, *arguments):
        signal.raise_signal(signal.SIGTERM)
        return spoil_images(model, *arguments)

    words = ["--steps", "9", "--save_every_steps", "4", "--max_skips", "3", "--name", "mine"]
    at_step([5], spoil_images)
    at_step([6], interrupt)
    assert run_on_data(*words) == 143
    assert final_state(here / "checkpoints/mine")[2]["skips"]["in_a_row"] == 2
    at_step([1], spoil_images)
    assert run_on_data(*words, "--print_freq", "1") == 0
    assert "3 steps in a row up to step 7" in capsys.readouterr().out


def test_that_going_back_was_in_vain_is_known_behind_an_interruption(here, at_step, capsys):
    """Back to step 4, with images that are no better: a restart does not try a third time."""

    def interrupt(model, *arguments):
        signal.raise_signal(signal.SIGTERM)
        return spoil_images(model, *arguments)

    words = ["--steps", "9", "--save_every_steps", "4", "--max_skips", "3", "--print_freq", "1"]
    words += ["--name", "mine"]
    at_step([5, 6, 7, 8], spoil_images)
    at_step([9], interrupt)
    assert run_on_data(*words) == 143
    assert final_state(here / "checkpoints/mine")[2]["skips"]["in_a_row"] == 2
    at_step([1], spoil_images)
    assert run_on_data(*words) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: 3 steps in a row up to step 7 were not finite")


def test_a_save_that_fails_is_told_and_gives_code_5(here, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "write_checkpoint", full)
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
    at_step(3, lambda *arguments: signal.raise_signal(signal.SIGTERM))
    assert run_on_data("--name", "mine", "--steps", "3") == 0
    assert RunFolder(here / "checkpoints/mine").finished


def test_a_signal_in_the_step_that_ends_a_milestone_leaves_it_one(here, at_step, monkeypatch):
    """The training saves once for both, and the milestone stays when later checkpoints come."""
    written, write = [], recorder.write_checkpoint

    def counted(folder, snapshot, keep):
        written.append(snapshot.step)
        return write(folder, snapshot, keep)

    monkeypatch.setattr(recorder, "write_checkpoint", counted)
    words = ["--name", "mine", "--milestone_epochs", "1", "--save_epoch_freq", "99", "--keep", "1"]
    at_step(5, lambda *arguments: signal.raise_signal(signal.SIGTERM))
    assert run_on_data(*words, "--steps", "8") == 143
    assert run_on_data(*words, "--steps", "8") == 0
    assert written == [5, 8]
    names = sorted(path.name for path in (here / "checkpoints/mine/ckpt").iterdir())
    assert names == ["step-00000005", "step-00000008"]


def test_a_milestone_that_could_not_be_saved_is_one_at_the_second_try(here, at_step, monkeypatch):
    write, tries = recorder.write_checkpoint, []

    def full_at_first(folder, snapshot, keep):
        tries.append(snapshot.milestone)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        return write(folder, snapshot, keep)

    monkeypatch.setattr(recorder, "write_checkpoint", full_at_first)
    words = ["--name", "mine", "--milestone_epochs", "1", "--save_epoch_freq", "99"]
    at_step(5, lambda *arguments: signal.raise_signal(signal.SIGTERM))
    assert run_on_data(*words, "--steps", "8") == 143
    assert tries == [True, True]


def test_two_processes_do_not_share_a_run(here, at_step, capsys):
    codes = []

    def second(*arguments):
        codes.append(run_on_data("--name", "mine", "--steps", "3"))
        codes.append(run_on_data("--steps", "3"))

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

    monkeypatch.setattr(preparation, "make_system", never)
    (here / "afile").write_text("x")
    for words, said in (
        (["--name", "../x"], "cannot name a run"),
        (["--checkpoints_dir", "afile/deep"], "--checkpoints_dir afile/deep"),
        (["--load_size", "28"], "--load_size 28 is smaller"),
        (["--dataroot", ""], "--dataroot '': must not be empty"),
    ):
        assert run_on_data(*words) == 2
        assert said in capsys.readouterr().err
