"""One training per folder: also where the folder is moved away, removed, or cannot be locked."""

import errno
import fcntl
import os
import shutil

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.runs import lock
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder, open_run
from fastcyclegan.steps.cyclegan import STEPS
from test_disk_faults import wait_for_writer
from tiny_runs import make_images, run_on_data

WORDS = ["--name", "mine", "--save_every_steps", "2", "--keep", "2", "--print_freq", "1"]


@pytest.fixture
def once(monkeypatch):
    """A function that has ``act()`` called before the first step of this number."""

    def install(number, act):
        fused, acts = STEPS["fused"], [act]

        def step(model, real_A, real_B, now):
            if int(now[0]) == number and acts:
                wait_for_writer()
                acts.pop()()
            return fused(model, real_A, real_B, now)

        monkeypatch.setitem(STEPS, "fused", step)

    return install


def tree(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_folder_that_another_run_has_taken_is_left_alone(here, once, how, capsys):
    root, theirs = here / "checkpoints/mine", {}
    make_images(here / "data/testA", 2, seed=3)
    make_images(here / "data/testB", 2, seed=4)

    def taken():
        if how == "moved":
            root.rename(here / "elsewhere")
        else:
            shutil.rmtree(root)
        assert run_on_data(*WORDS, "--steps", "4", "--seed", "7") == 0
        theirs.update(tree(root))
        capsys.readouterr()

    once(5, taken)
    assert run_on_data(*WORDS, "--steps", "9", "--eval_every", "1", "--display_freq", "1") == 5
    out, err = capsys.readouterr()
    reason = "another run has taken the place of this one's folder"
    assert err.startswith("error: the checkpoint of step 9 could not be saved: ")
    assert f"{reason}: 'checkpoints/mine'" in err and err.count("\n") == 1
    assert out.count(f"metrics.jsonl: {reason}") == 1 and "Traceback" not in out
    assert tree(root) == theirs
    if how == "moved":
        assert latest_checkpoint(RunFolder(here / "elsewhere"))[0] == 4


def test_nothing_of_another_run_is_gone_back_to(here, once, at, capsys):
    at["spoil"] += [5, 6]
    root, theirs = here / "checkpoints/mine", {}

    def taken():
        root.rename(here / "elsewhere")
        at["spoil"], kept = [], at["spoil"]
        assert run_on_data(*WORDS, "--steps", "4") == 0
        at["spoil"] = kept
        shutil.rmtree(root / "ckpt")
        theirs.update(tree(root))
        capsys.readouterr()

    once(5, taken)
    assert run_on_data(*WORDS, "--steps", "9", "--max_skips", "2") == 5
    err = capsys.readouterr().err
    assert "checkpoints/mine cannot be brought back to its last checkpoint (another run" in err
    assert tree(root) == theirs


def test_a_lock_that_is_removed_is_taken_again(here, once):
    codes = []

    def removed():
        (here / "checkpoints/mine/.lock").unlink()

    once(3, removed)
    assert run_on_data(*WORDS, "--steps", "3") == 0
    once(5, removed)
    once(8, lambda: codes.append(run_on_data(*WORDS, "--steps", "9")))
    assert run_on_data(*WORDS, "--steps", "9") == 0
    assert codes == [2] and RunFolder(here / "checkpoints/mine").finished


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_system_without_locks_is_warned_of_and_used(here, no_locks, capsys):
    words = ["--steps", "2"]
    assert run_on_data(*words) == 0
    warning = (
        "warning: checkpoints/0001 cannot be locked (No locks available): begin no second "
        "training in it, as nothing will refuse that\n"
    )
    assert capsys.readouterr().out.count(warning) == 1
    RunFolder(here / "checkpoints/0001").update_config(finished=False)
    assert run_on_data(*words) == 0
    assert "run checkpoints/0001 is finished" in capsys.readouterr().out


def test_other_errors_of_a_lock_are_one_line(tmp_path, monkeypatch):
    run = open_run(tmp_path, "x", "d")

    def flock(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"x/\.lock cannot be opened \(Input/output error\)"):
        run.locked().__enter__()


def test_a_lock_of_another_user_is_passed_over_without_a_name(tmp_path, monkeypatch):
    """Of the same options, and unfinished: not by chmod, as the superuser may open anything."""
    theirs = open_run(tmp_path, None, "d")
    with theirs.locked():
        pass
    opened = os.open

    def refused(path, *arguments):
        if path == theirs.root / ".lock":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(lock.os, "open", refused)
    assert open_run(tmp_path, None, "d").root.name == "0002"
    with pytest.raises(UserError, match=r"\.lock cannot be opened \(Permission denied\)"):
        open_run(tmp_path, "0001", "d").locked().__enter__()
