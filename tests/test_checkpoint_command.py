"""``python -m fastcyclegan.checkpoint``: what a person can ask about a run's checkpoints."""

import os

import pytest

from fastcyclegan import checkpoint as command_module
from fastcyclegan import command
from fastcyclegan.runs.checkpoint import latest_checkpoint, take_snapshot, write_checkpoint
from fastcyclegan.runs.folder import open_run
from test_checkpoint import flip, networks


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Five checkpoints, the second a milestone, the last damaged."""
    monkeypatch.chdir(tmp_path)
    run = open_run(tmp_path / "runs", "x", "digest")
    for step in range(1, 6):
        snapshot = take_snapshot(step, networks(step), {}, {}, milestone=step == 2)
        write_checkpoint(run, snapshot, keep=9)
    flip(run.ckpt / "step-00000005/G_A.safetensors", 700)
    return run


def call(*words):
    return command.run(command_module.main, words)


def tree(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_verify_names_what_is_damaged_and_gives_2(run, capsys):
    before = tree(run.root)
    assert call("verify", "runs/x") == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 5 and lines[0].split()[0] == "step-00000001"
    assert all("sound" in line for line in lines[:4]) and "milestone" in lines[1]
    assert "DAMAGED: runs/x/ckpt/step-00000005/G_A.safetensors is damaged" in lines[4]
    assert err.startswith("error: 1 of 5 checkpoints of runs/x are damaged") and err[-1] == "\n"
    assert tree(run.root) == before


def test_verify_of_a_sound_run_gives_0(run, capsys):
    assert call("prune", "runs/x") == 0
    capsys.readouterr()
    assert call("verify", "runs/x") == 0
    assert capsys.readouterr().out.count("sound") == 3


def test_list_shows_without_reading_all(run, capsys, monkeypatch):
    assert call("list", "runs/x") == 0
    out = capsys.readouterr().out
    assert out.count("MiB") == 5 and "DAMAGED" not in out and "sound" not in out
    assert out.count("milestone") == 1


def test_prune_leaves_the_newest_sound_ones_and_milestones(run, capsys):
    assert call("prune", "runs/x", "--keep", "1") == 0
    assert sorted(os.listdir(run.ckpt)) == ["step-00000002", "step-00000004"]
    assert latest_checkpoint(run)[0] == 4
    assert "removed 3 of 5 checkpoints" in capsys.readouterr().out


def test_prune_removes_nothing_where_nothing_is_sound_or_a_run_is_on(run, capsys):
    with run.locked():
        before = tree(run.root)
        assert call("prune", "runs/x", "--keep", "1") == 2
        assert "in use by another process" in capsys.readouterr().err
        assert tree(run.root) == before
    for step in range(1, 5):
        flip(run.ckpt / f"step-0000000{step}/D_A.safetensors", 600)
    before = tree(run.root)
    assert call("prune", "runs/x", "--keep", "1") == 2
    assert "no sound checkpoint: nothing is removed" in capsys.readouterr().err
    assert tree(run.root) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "action is missing: verify, list or prune"),
        (["verify"], "run is missing: a run folder"),
        (["remove", "runs/x"], "action remove: not one of verify, list, prune"),
        (["list", "runs/x", "more"], "'more' stands alone"),
        (["list", "nowhere"], "nowhere is no run folder: it has no folder ckpt"),
        (["list", "."], ". is no run folder"),
        (["prune", "runs/x", "--keep", "0"], "--keep 0: must be at least 1"),
        (["verify", "runs/x", "--kep", "2"], "--kep: unknown option (did you mean --keep?)"),
        (["verify", "runs/x", "--run", "y"], "--run: unknown option"),
    ],
)
def test_bad_input_gives_one_line_and_2(run, words, said, capsys):
    assert call(*words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and err.startswith("error: ")


def test_an_empty_run_has_none(tmp_path, capsys):
    open_run(tmp_path, "empty", "d")
    for action in ("list", "verify"):
        assert call(action, str(tmp_path / "empty")) == 0
        assert "has no checkpoint" in capsys.readouterr().out
