"""SIGKILL at any moment, inside the writing of a checkpoint too, loses nothing that was saved."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastcyclegan.files import TEMPORARY_PREFIX
from fastcyclegan.models.weights import load_network
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder
from house_rules import ROOT
from test_resume import outcome, same

KILLS = 100

# A process that has imported everything makes a fresh one for each attempt: it forks, and the child
# trains, telling each checkpoint that is whole. The parent never computes, so it has no threads.
FORKER = """
import os, sys
from fastcyclegan import recorder, training
from tiny_runs import run_on_data

def told(*arguments):
    path = write(*arguments)
    os.write(3, b"%d\\n" % int(path.name[5:]))

write, recorder.write_checkpoint = recorder.write_checkpoint, told
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.stdin.close()
        os._exit(run_on_data(*line.split()))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(here):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    forker = subprocess.Popen(
        ["bash", "-c", f'exec "$0" -c "$1" 3>&{writing} 2>err.txt', sys.executable, FORKER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, pass_fds=[writing],
    )  # fmt: skip
    run, words = RunFolder(Path("checkpoints/mine")), "--save_every_steps 1 --keep 2 --name mine"
    rng, saved, inside, early, steps, begun = random.Random(0), 0, 0, 0, [], 0.5
    for kill in range(KILLS):
        child, told, started = _ask(forker, f"{words} --steps 100000"), b"", time.monotonic()
        if kill % 3 == 0:  # while it begins: finds its folder, resumes, writes its options
            time.sleep(rng.random() * begun)
        else:
            while not told and not Path("err.txt").read_text():
                time.sleep(0.01)
                told = _read(reading)
            begun = time.monotonic() - started
            time.sleep(rng.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        assert _word(forker) == "over"
        told += _read(reading)
        saved = max([saved, *map(int, told.split())])
        early += not told
        inside += bool(told and list(run.ckpt.glob(TEMPORARY_PREFIX + "*")))
        found = latest_checkpoint(run, lambda *damaged: pytest.fail(str(damaged))) or (0, None)
        assert found[0] >= saved
        _require_whole_weights(run, found[0])
        steps.append(found[0])
    assert steps == sorted(steps) and min(inside, early) >= 3, (inside, early)
    for last in (words, "--name whole"):
        _ask(forker, f"{last} --steps {steps[-1] + 2}")
        assert _word(forker) == "over"
    forker.kill()
    forker.wait()
    mine, whole = (outcome(Path("checkpoints") / name) for name in ("mine", "whole"))
    assert same(mine, whole)
    where = f"{early} before the first save of a process, {inside} inside the writer"
    print(f"{KILLS} kills, {where}, {steps[-1]} steps, 0 lost")


def _require_whole_weights(run, newest):
    """Each network of weights/ as some checkpoint had it: that of ``newest`` or one before it."""
    for path in run.weights.glob("*.safetensors"):
        _, metadata = load_network(path)
        assert int(metadata["step"]) <= newest
        saved = run.ckpt / f"step-{int(metadata['step']):08d}" / path.name
        assert not saved.exists() or saved.read_bytes() == path.read_bytes()


def _ask(forker, words):
    """The process that trains as ``words`` say, which the forker was asked for."""
    forker.stdin.write(words + "\n")
    forker.stdin.flush()
    return int(_word(forker))


def _word(forker):
    """The next word of the forker itself, among those of its children."""
    while True:
        word = forker.stdout.readline().strip()
        if word == "over" or word.isdigit():
            return word


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""
