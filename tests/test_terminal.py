"""Standard output that takes nothing more: a training goes on, or saves and stops."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fastcyclegan import command
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.terminal import terminal
from fastcyclegan.steps.cyclegan import STEPS
from house_rules import ROOT
from tiny_runs import TINY, run_on_data

FULL = "/dev/full"


@contextmanager
def piped(monkeypatch):
    """Standard output is a pipe; gives the end that is read."""
    reading, writing = os.pipe()
    with open(writing, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield reading


def let_go_in(step, monkeypatch, reading, signum=None):
    """In this step the reader goes, and a signal comes."""
    fused = STEPS["fused"]

    def stepped(model, real_A, real_B, number):
        if int(number[0]) == step:
            os.close(reading)
            if signum:
                signal.raise_signal(signum)
        return fused(model, real_A, real_B, number)

    monkeypatch.setitem(STEPS, "fused", stepped)


def train(*words, **options):
    words = [sys.executable, "-m", "fastcyclegan.train", *TINY, "--dataroot", "data", *words]
    return subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


def saved(here):
    return latest_checkpoint(RunFolder(here / "checkpoints/mine"))[0]


@pytest.mark.skipif(not os.path.exists(FULL), reason="needs /dev/full")
def test_a_training_ends_as_ever_where_nothing_can_be_printed(here):
    """Up to the end of its process, where Python writes what is still to be written."""
    with open(FULL, "w") as full:
        done = train("--name", "mine", "--steps", "6", stdout=full, stderr=full)
        assert done.returncode == 0 and saved(here) == 6
        assert train("--steps", "-1", stdout=full, stderr=full).returncode == 2


def test_lines_come_again_where_there_is_room_again(tmp_path):
    with open(tmp_path / "log", "w") as log, open(FULL, "w") as full:
        there = os.dup(log.fileno())
        with terminal(log) as console:
            console.print("before")
            os.dup2(full.fileno(), log.fileno())
            console.print("lost, or late")
            os.dup2(there, log.fileno())
            console.print("after")
        os.close(there)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after"


@pytest.mark.parametrize(("signum", "code"), [(None, 141), (signal.SIGINT, 130)])
def test_a_training_whose_reader_goes_saves_and_stops(here, monkeypatch, signum, code):
    """In step 3, which with a signal is the last one; without it the next tick notices."""
    with piped(monkeypatch) as reading:
        let_go_in(2, monkeypatch, reading, signum)
        assert run_on_data("--name", "mine", "--steps", "9") == code
    assert saved(here) == (3 if signum else 4)


def test_a_training_whose_reader_was_never_there_does_not_begin(here, monkeypatch):
    with piped(monkeypatch) as reading:
        os.close(reading)
        assert run_on_data("--name", "mine", "--steps", "9") == 141
    assert not (here / "checkpoints").exists()


def test_what_is_no_training_ends_with_141_too(monkeypatch):
    def main(argv):
        with terminal(sys.stdout) as console:
            console.print("x")

    with piped(monkeypatch) as reading:
        os.close(reading)
        assert command.run(main, []) == command.PIPE_CLOSED
