"""What becomes of a training when one of its processes is told to stop, falls silent or dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from fastcyclegan.distributed import joined
from fastcyclegan.launch import Launch
from house_rules import ROOT
from processes import TIMEOUT, ended, free_port, in_processes
from tiny_runs import TINY, final_state

WORDS = [*TINY, "--dataroot", "data", "--batch_size", "2", "--name"]


def stopped_then_silent(here: Path, ports: tuple[int, int]) -> list:
    """The second process is told to stop; in another training it says nothing any more."""
    os.chdir(here)
    second = Launch.of().rank == 1
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    if second:
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    stopped = ended([*WORDS, "stopped", "--n_epochs", "1000000"])
    os.environ["MASTER_PORT"] = str(ports[1])
    words = [*WORDS, "silent", "--n_epochs", "1000000", "--dist_timeout", "2"]
    start = time.monotonic()
    if second:
        with joined(Launch.of(), TIMEOUT) as ranks:
            ranks.together(lambda: None)  # the options
            time.sleep(4)
            os.kill(os.getpid(), signal.SIGKILL)
    return [stopped, ended(words), time.monotonic() - start]


def first_only(here: Path, ports: tuple[int, int]) -> list:
    found = stopped_then_silent(here, ports)
    (here / "found.txt").write_text(json.dumps(found))
    return found


def test_a_stop_of_one_stops_all_and_silence_ends_the_rest(here):
    with pytest.raises(Exception, match="terminated abruptly"):
        in_processes(2, partial(first_only, here, (free_port(), free_port())))
    for _ in range(100):
        if (here / "found.txt").exists():
            break
        time.sleep(0.1)
    stopped, silent, seconds = json.loads((here / "found.txt").read_text())
    assert stopped[0] == 143 and "stopped at step" in stopped[1]
    assert final_state(here / "checkpoints/stopped")
    assert silent[0] == 6 and silent[2].count("\n") == 1 and seconds < 20
    assert "error: rank 0: another process has ended, or did not answer" in silent[2]


def second_process(launcher: int) -> int | None:
    """The process that ``launcher`` started as rank 1, if it has."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            environment = (status.parent / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == launcher and b"RANK=1" in environment:
            return int(status.parent.name)
    return None


def under_torchrun(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--max-restarts=1", "-m", "fastcyclegan.train", *WORDS, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


@pytest.mark.slow
def test_a_killed_process_and_all_go_on_from_the_last_save(here):
    """The same bits as without it; ``--resume none`` is for the first start alone."""
    length = ("--steps", "60", "--save_every_steps", "5", "--resume", "none")
    with under_torchrun("whole", *length) as whole:
        assert whole.wait(200) == 0, whole.stdout.read()
    with under_torchrun("killed", *length) as launcher:
        while not list((here / "checkpoints").glob("killed/ckpt/step-*")):
            assert launcher.poll() is None, launcher.stdout.read()
            time.sleep(0.02)
        os.kill(second_process(launcher.pid), signal.SIGKILL)
        out = launcher.stdout.read()
        assert launcher.wait(200) == 0, out
    assert "continuing run checkpoints/killed at step" in out
    states = [final_state(here / "checkpoints" / name) for name in ("whole", "killed")]
    torch.testing.assert_close(states[1][:2], states[0][:2], rtol=0, atol=0)
