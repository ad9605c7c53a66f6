"""Full disks and folders that go away while a training runs: it goes on, says so, and keeps."""

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
from fastcyclegan.runs import checkpoint
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import read_metrics
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


def test_a_file_system_that_becomes_read_only_is_told(here, monkeypatch, capsys):
    def read_only(*arguments):
        raise OSError(30, "Read-only file system", "there")

    monkeypatch.setattr(checkpoint, "write_durable", read_only)
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
