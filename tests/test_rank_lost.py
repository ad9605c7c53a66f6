"""What becomes of a training when one of its processes is told to stop, or falls silent."""

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from fastcyclegan.distributed import joined
from fastcyclegan.launch import Launch
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
