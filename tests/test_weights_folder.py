"""weights/ of a run is that of its newest checkpoint, also when a crash came between the two."""

import pytest
from safetensors import safe_open

from fastcyclegan.runs import checkpoint
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder
from tiny_runs import run_on_data

WORDS = ["--name", "mine", "--save_every_steps", "2", "--steps"]


@pytest.fixture
def mine(here):
    return here / "checkpoints/mine"


@pytest.fixture
def weights_fail(monkeypatch):
    """Weights of these steps cannot be written, and what else is can."""

    def install(*steps):
        write = checkpoint.write_atomic

        def full(path, data):
            of_these = any(f'"step":"{step}"'.encode() in data[:4000] for step in steps)
            if of_these and path.parent.name == "weights" and path.name == "G_B.safetensors":
                raise OSError(28, "No space left on device")
            write(path, data)

        monkeypatch.setattr(checkpoint, "write_atomic", full)

    return install


def steps(root):
    found = {}
    for path in (root / "weights").iterdir():
        with safe_open(path, "pt") as file:
            found[path.stem] = int(file.metadata()["step"])
    return found


def is_of_the_newest(root):
    step, path = latest_checkpoint(RunFolder(root))
    files = {file.name: file.read_bytes() for file in (root / "weights").iterdir()}
    assert len(files) == 4 and set(steps(root).values()) == {step}
    return all((path / name).read_bytes() == data for name, data in files.items())


@pytest.mark.parametrize("loss", ["old", "missing", "cut"])
def test_a_finished_run_gets_the_weights_that_a_kill_kept_from_it(mine, loss, capsys):
    assert run_on_data(*WORDS, "4", "--keep", "2") == 0
    path = mine / "weights/G_A.safetensors"
    if loss == "old":
        path.write_bytes((mine / "ckpt/step-00000002/G_A.safetensors").read_bytes())
        assert steps(mine)["G_A"] == 2 and steps(mine)["G_B"] == 4
    elif loss == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    assert run_on_data(*WORDS, "4") == 0
    assert "is finished at step 4" in capsys.readouterr().out
    assert is_of_the_newest(mine)


def test_a_run_that_goes_on_has_them_at_once(mine, monkeypatch):
    assert run_on_data(*WORDS, "4", "--keep", "2") == 0
    for name in ("G_A", "D_B"):
        old = (mine / f"ckpt/step-00000002/{name}.safetensors").read_bytes()
        (mine / f"weights/{name}.safetensors").write_bytes(old)
    monkeypatch.setattr("fastcyclegan.training.Run._begin", lambda run, first: 1 / 0)
    assert run_on_data(*WORDS, "6") == 1
    assert is_of_the_newest(mine)


def test_weights_that_do_not_fit_on_the_disk_are_told_as_what_they_are(mine, weights_fail, capsys):
    weights_fail(4)
    assert run_on_data(*WORDS, "4") == 5
    captured = capsys.readouterr()
    said = "weights/ could not be brought to step 4, whose checkpoint is saved: "
    assert captured.err.startswith(f"error: {said}") and captured.err.count("\n") == 1
    assert "No space left on device: 'checkpoints/mine/weights/G_B.safetensors'" in captured.err
    assert f"warning: {said}" in captured.out and "checkpoint of step" not in captured.out
    assert latest_checkpoint(RunFolder(mine))[0] == 4 and steps(mine)["G_B"] == 2


def test_weights_that_still_do_not_fit_are_one_line_then_come_back(
    mine, weights_fail, capsys, monkeypatch
):
    weights_fail(4)
    assert run_on_data(*WORDS, "4") == 5
    capsys.readouterr()
    assert run_on_data(*WORDS, "4") == 2
    error = capsys.readouterr().err
    assert error == (
        "error: checkpoints/mine/weights/G_B.safetensors: cannot be written "
        "(No space left on device)\n"
    )
    assert not RunFolder(mine).finished
    monkeypatch.undo()
    monkeypatch.chdir(mine.parent.parent)
    assert run_on_data(*WORDS, "4") == 0
    assert is_of_the_newest(mine) and RunFolder(mine).finished


def test_weights_of_a_later_save_make_good_for_it(mine, weights_fail):
    weights_fail(2)
    assert run_on_data(*WORDS, "4") == 0
    assert is_of_the_newest(mine)
