"""Full disks and folders that go away while a training runs: it goes on, says so, and keeps."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from fastcyclegan import recorder
from fastcyclegan.runs import sealed
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog, read_metrics
from fastcyclegan.steps.cyclegan import STEPS
from house_rules import ROOT
from tiny_runs import TINY, run_on_data

WORDS = ["--name", "mine", "--save_every_steps", "2", "--steps", "8", "--keep", "9"]


@pytest.fixture
def before_step(monkeypatch):
    """A function that has ``act()`` called before the steps of these numbers."""

    def install(acts):
        fused = STEPS["fused"]

        def step(model, real_A, real_B, number):
            acts.get(int(number[0]), lambda: None)()
            return fused(model, real_A, real_B, number)

        monkeypatch.setitem(STEPS, "fused", step)

    return install


@pytest.fixture
def no_file_above():
    """A function that makes longer files impossible, which is what a full disk is to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=before[0]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    limit()


def wait_for_writer():
    for thread in threading.enumerate():
        if thread.name == "writer":
            thread.join()


def saved(here):
    return sorted(path.name for path in (here / "checkpoints/mine/ckpt").iterdir())


def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint(
    here, before_step, no_file_above, capsys
):
    def full():
        wait_for_writer()
        no_file_above(8000)

    def free():
        wait_for_writer()
        no_file_above()

    before_step({3: full, 4: free})
    assert run_on_data(*WORDS) == 0
    assert saved(here) == ["step-00000002", "step-00000006", "step-00000008"]
    out = capsys.readouterr().out
    assert out.count("warning: the checkpoint of step 4 could not be saved: ") == 1
    # Told at the next tick, long before the end.
    assert out.index("step 4 could not be saved") < out.index("step 8/8")
    failed = [r for r in read_metrics(here / "checkpoints/mine/metrics.jsonl") if "event" in r]
    assert [(row["step"], row["event"]) for row in failed] == [(4, "save failed")]


def test_a_disk_that_stays_full_keeps_the_checkpoint_before_and_gives_5(
    here, before_step, no_file_above, capsys
):
    def full():
        wait_for_writer()
        no_file_above(8000)

    acts = {5: full}
    before_step(acts)
    assert run_on_data(*WORDS) == 5
    acts.clear()
    no_file_above()
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the checkpoint of step 8 could not be saved: ")
    assert captured.err.count("\n") == 1
    assert saved(here) == ["step-00000002", "step-00000004"]
    assert run_on_data(*WORDS) == 0
    assert "continuing run checkpoints/mine at step 4" in capsys.readouterr().out


def test_rows_that_found_no_room_are_written_at_the_next_tick(
    here, before_step, no_file_above, capsys
):
    """None is lost, none is there twice or half; it is told once."""
    log = here / "checkpoints/mine/metrics.jsonl"

    def full():
        wait_for_writer()
        no_file_above(log.stat().st_size + 40)

    before_step({3: full, 6: no_file_above})
    words = ["--name", "mine", "--steps", "9", "--save_every_steps", "9", "--print_freq", "1"]
    assert run_on_data(*words, "--display_freq", "99") == 0
    rows = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 10))
    assert capsys.readouterr().out.count("metrics.jsonl: File too large") == 1


def never_any_room(monkeypatch):
    """For files that are written anew, and what is appended is written yet."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastcyclegan.files.write_durable", full)


@pytest.mark.parametrize("finished", [False, True])
def test_starting_again_on_a_full_disk_is_one_line(here, finished, monkeypatch, capsys):
    assert run_on_data("--name", "mine", "--steps", "4") == 0
    folder = RunFolder(here / "checkpoints/mine")
    folder.update_config(finished=False)
    with open(folder.metrics, "a") as file:
        file.write('{"schema": 1, "kind": "tra')
    capsys.readouterr()
    never_any_room(monkeypatch)
    assert run_on_data("--name", "mine", "--steps", "4" if finished else "6") == 2
    error = capsys.readouterr().err
    assert error == "error: checkpoints/mine: cannot be written (No space left on device)\n"


def test_a_finished_run_needs_no_room_to_say_so(here, monkeypatch, capsys):
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    never_any_room(monkeypatch)
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    assert "is finished at step 2" in capsys.readouterr().out


def test_a_row_before_the_first_step_that_finds_no_room_is_told(here, monkeypatch, capsys):
    (here / "data/trainA/broken.png").write_bytes(b"no image")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsLog, "flush", full)
    assert run_on_data("--steps", "2", "--max_bad", "0.5") == 0
    assert capsys.readouterr().out.count("metrics.jsonl: No space left on device") == 1


def test_going_back_on_a_full_disk_ends_in_one_line(here, at, monkeypatch, capsys):
    at["spoil"] += [4, 5]

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastcyclegan.runs.metrics.write_atomic", full)
    words = ["--name", "mine", "--steps", "9", "--save_every_steps", "3", "--max_skips", "2"]
    assert run_on_data(*words, "--print_freq", "1") == 5
    error = capsys.readouterr().err
    assert error.startswith("error: 2 steps in a row up to step 6 were not finite")
    assert "cannot be brought back to its last checkpoint (No space left on device)" in error
    assert error.count("\n") == 1 and saved(here) == ["step-00000003"]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run_on_data(*words) == 0
    rows = read_metrics(here / "checkpoints/mine/metrics.jsonl")
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_a_file_system_that_becomes_read_only_is_told(here, monkeypatch, capsys):
    def read_only(*arguments):
        raise OSError(30, "Read-only file system", "there")

    monkeypatch.setattr(sealed, "write_durable", read_only)
    assert run_on_data(*WORDS) == 5
    captured = capsys.readouterr()
    assert captured.out.count("Read-only file system") == 4 and "step 8/8" in captured.out
    assert saved(here) == []


def test_a_folder_that_is_removed_is_not_made_again(here, before_step, capsys):
    root = here / "checkpoints/mine"

    def remove():
        wait_for_writer()
        shutil.rmtree(root)

    before_step({5: remove})
    assert run_on_data(*WORDS) == 5
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the checkpoint of step 8 could not be saved")
    assert "No such file" in captured.err and captured.err.count("\n") == 1
    assert captured.out.count("metrics.jsonl: No such file") == 1 and "step 8/8" in captured.out
    assert "Traceback" not in captured.out and not root.exists()


def test_an_error_of_ours_in_the_writer_is_not_taken_for_a_full_disk(here, monkeypatch, capsys):
    def wrong(*arguments):
        raise KeyError("a defect")

    monkeypatch.setattr(recorder, "write_checkpoint", wrong)
    assert run_on_data(*WORDS) == 1
    assert "a defect" in capsys.readouterr().err


def test_the_step_does_not_wait_for_the_disk(here, before_step, monkeypatch):
    """A checkpoint is that of its step, though it is written while later steps are made."""
    write, gate = recorder.write_checkpoint, threading.Event()

    def slow(*arguments):
        assert gate.wait(60)
        return write(*arguments)

    monkeypatch.setattr(recorder, "write_checkpoint", slow)
    before_step({3: gate.set})
    assert run_on_data(*WORDS) == 0
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run_on_data("--name", "other", "--steps", "2") == 0
    two, other = (
        load_checkpoint(here / f"checkpoints/{name}/ckpt/step-00000002")
        for name in ("mine", "other")
    )
    assert all((two[0]["G_A"][k] == other[0]["G_A"][k]).all() for k in two[0]["G_A"])
    assert latest_checkpoint(RunFolder(here / "checkpoints/mine"))[0] == 8


# Refuses what Inductor tries out, and hangs in the first thing that it needs.
COMPILER = """#!/bin/sh
case "$*" in
*-fsyntax-only* | *--version*) exec g++ "$@" ;;
*.hpp* | *main.cpp*) touch "${0%/*}/compiling"; exec sleep 60 ;;
*) exit 1 ;;
esac
"""


def test_ctrl_c_while_a_compiler_runs(here, monkeypatch):
    """A terminal sends it to the compiler as well, which fails; that is no defect."""
    (here / "compiler").write_text(COMPILER)
    (here / "compiler").chmod(0o755)
    monkeypatch.setenv("CXX", str(here / "compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(here / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = [sys.executable, "-m", "fastcyclegan.train", *TINY, "--dataroot", "data", "--compile"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": here}
    process = subprocess.Popen([*words, "--name", "mine"], start_new_session=True, **pipes)
    while not (here / "compiling").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.startswith("error: stopped within a step") and error.count("\n") == 1


HANGING = """
import sys, time
from fastcyclegan.steps.cyclegan import STEPS
from tiny_runs import run_on_data

def hang(*arguments):
    print("in a step", flush=True)
    time.sleep(100)

STEPS["fused"] = hang
sys.exit(run_on_data("--steps", "3"))
"""


def test_a_second_signal_leaves_at_once(here, monkeypatch):
    """Whatever the step is doing; a shell sees 130 or 143."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    process = subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True)
    while "in a step" not in process.stdout.readline():
        assert process.poll() is None
    for again in (0.1, 0.1, 1.3):  # what comes at once is the first one, passed on twice
        process.send_signal(signal.SIGINT)
        time.sleep(again)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
