"""What becomes of a training when one of its processes is told to stop, falls silent or dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import distributed as dist

from fastcyclegan.launch import Launch
from fastcyclegan.recorder import Bystander
from house_rules import ROOT
from processes import ended, free_port, in_processes
from tiny_runs import TINY, final_state

T = TypeVar("T")
WORDS = [*TINY, "--dataroot", "data", "--batch_size", "2", "--name"]


def when_it_trains(run: Path, do: Callable[[], None]) -> None:
    """Call ``do`` in a thread once the training in the folder ``run`` has told of a step."""

    def look() -> None:
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.02)
        do()

    threading.Thread(target=look, daemon=True).start()


def broken(*arguments) -> None:
    raise ValueError("broken")


def three_ends(here: Path, ports: Sequence[int]) -> None:
    """The second process is told to stop, breaks, falls silent; all write their ends."""
    os.chdir(here)
    rank, after_step = Launch.of().rank, Bystander.after_step
    acts = {
        "stopped": partial(os.kill, os.getpid(), signal.SIGTERM),
        "broken": partial(setattr, Bystander, "after_step", broken),
        "silent": partial(os.kill, os.getpid(), signal.SIGSTOP),
    }
    (here / f"process-{rank}").write_text(str(os.getpid()))
    for port, (name, act) in zip(ports, acts.items(), strict=True):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if rank == 1:
            when_it_trains(here / "checkpoints" / name, act)
        start = time.monotonic()
        end = ended([*WORDS, name, "--n_epochs", "1000000", "--dist_timeout", "5"])
        found = {"seconds": time.monotonic() - start, **end._asdict()}
        (here / f"{name}-{rank}.json").write_text(json.dumps(found))
        Bystander.after_step = after_step
        if dist.is_initialized():
            dist.destroy_process_group()
    os.kill(int((here / "process-1").read_text()), signal.SIGKILL)


def test_a_stop_of_one_stops_all_and_a_loss_of_one_ends_the_rest(here):
    with pytest.raises(Exception, match="terminated abruptly"):
        in_processes(2, partial(three_ends, here, [free_port() for _ in range(3)]))
    ends = {path.stem: json.loads(path.read_text()) for path in here.glob("*.json")}
    assert ends["stopped-0"]["code"] == ends["stopped-1"]["code"] == 143
    assert "stopped at step" in ends["stopped-0"]["out"]
    assert final_state(here / "checkpoints/stopped")
    assert ends["broken-1"]["code"] == 1 and "ValueError: broken" in ends["broken-1"]["err"]
    assert "\nerror: rank 1: this should not happen: please report" in ends["broken-1"]["err"]
    for end in (ends["broken-0"], ends["silent-0"]):
        assert end["code"] == 6 and end["err"].count("\n") == 1 and end["seconds"] < 20
        assert "error: rank 0: another process has ended, or did not answer" in end["err"]


def process_of(launchers: Sequence[subprocess.Popen], rank: int) -> int | None:
    """The process that one of ``launchers`` started as ``rank``, if it has."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            environment = (status.parent / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent in [launcher.pid for launcher in launchers] and f"RANK={rank}".encode() in (
            environment
        ):
            return int(status.parent.name)
    return None


def under_torchrun(machine: Sequence[str], *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *machine]
    command += ["--max-restarts=2", "-m", "fastcyclegan.train", *WORDS, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


ONE_MACHINE = [["--standalone", "--nproc_per_node=2"]]


def two_machines() -> list[list[str]]:
    """With torchrun's elastic rendezvous, where each of them counts its restarts by itself."""
    meeting = f"--rdzv_endpoint=127.0.0.1:{free_port()}"
    words = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=1", meeting]
    return [[*words, "--local_addr=127.0.0.1"]] * 2


def newest(run: Path) -> int:
    """The step of the last checkpoint, 0 if there is none."""
    return max((int(path.name.partition("-")[2]) for path in run.glob("ckpt/step-*")), default=0)


def wait_for(found: Callable[[], T], launchers: Sequence[subprocess.Popen]) -> T:
    while not (result := found()):
        for launcher in launchers:
            assert launcher.poll() is None, launcher.stdout.read()
        time.sleep(0.02)
    return result


def trained(run: Path, machines: Sequence[Sequence[str]], *killed: int) -> str:
    """The output of a training whose processes ``killed`` are, each after another start's save."""
    length = ("--steps", "60", "--save_every_steps", "5", "--resume", "none")
    with ExitStack() as held:
        started = [held.enter_context(under_torchrun(m, run.name, *length)) for m in machines]
        before = None
        for rank in killed:
            find = partial(process_of, started, rank)
            process = wait_for(lambda find=find, old=before: {find()} - {old, None}, started).pop()
            saved = newest(run)
            wait_for(lambda saved=saved: newest(run) > saved, started)
            before, other = process_of(started, 0), process_of(started, 1 - rank)
            # so that torchrun on another machine does not count it among those that have failed
            os.kill(other, signal.SIGSTOP)
            os.kill(process, signal.SIGKILL)
            time.sleep(3)
            os.kill(other, signal.SIGCONT)
        outputs = [launcher.communicate(timeout=200)[0] for launcher in started]
        assert [launcher.returncode for launcher in started] == [0] * len(started), outputs
    return "".join(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("machines", [lambda: ONE_MACHINE, two_machines])
def test_a_killed_process_and_all_go_on_from_the_last_save(here, machines):
    """First the second process, then the one that writes: the same bits as without that.

    ``--resume none`` is for the first start alone.
    """
    trained(here / "checkpoints/whole", ONE_MACHINE)
    out = trained(here / "checkpoints/killed", machines(), 1, 0)
    assert out.count("continuing run checkpoints/killed at step") == 2
    states = [final_state(here / "checkpoints" / name) for name in ("whole", "killed")]
    torch.testing.assert_close(states[1][:2], states[0][:2], rtol=0, atol=0)
