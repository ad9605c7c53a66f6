"""Processes that cannot train together: one line from the first of them, and all of them end."""

import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from fastcyclegan import distributed, meeting
from fastcyclegan.device import own_device
from fastcyclegan.errors import RankLost, UserError
from fastcyclegan.launch import Launch
from house_rules import ROOT
from processes import Ended, ended, free_port, in_processes
from tiny_runs import TINY, make_images

WORDS = [*TINY, "--dataroot", "data", "--batch_size", "2", "--name", "bad"]


def badly_launched(here: Path, taken: int, *ports: int) -> list[Ended]:
    """The command where another program listens on the port, where two share one GPU.

    And where the first process alone has a GPU.
    """
    os.chdir(here)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken)}
    ends = [ended([*WORDS, "--dist_timeout", "3"])]
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
    torch.cuda.set_device = lambda device: None
    os.environ["MASTER_PORT"] = str(ports[0])
    ends.append(ended([*WORDS, "--device", "cuda"]))
    torch.cuda.is_available = lambda: os.environ["RANK"] == "0"
    os.environ["MASTER_PORT"] = str(ports[1])
    return [*ends, ended([*WORDS, "--device", "auto", "--precision", "fp32"])]


def test_a_taken_port_and_gpus_that_are_missing(here):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        work = partial(badly_launched, here, taken, free_port(), free_port())
        (port, gpus, kinds), (port_1, gpus_1, kinds_1) = in_processes(2, work)
    there = f"127.0.0.1:{taken}"
    assert port.err.startswith(f"error: rank 0: port {there} is taken by another program: give")
    assert port_1.err == f"error: rank 1: rank 0 does not answer at {there} within 3 s\n"
    assert gpus.err == (
        "error: rank 1: torch sees 1 CUDA GPUs here, and each process needs its own: give torchrun "
        "--nproc_per_node=1, or train with --device cpu\n"
    )
    assert kinds.err == (
        "error: rank 1 has another kind of device (cpu) than rank 0 (cuda): start all ranks with "
        "the same options and images\n"
    )
    assert gpus_1.err == kinds_1.err == ""
    for end in (port, port_1, gpus, gpus_1, kinds, kinds_1):
        assert end.code == 2 and end.out == "" and end.err.count("\n") <= 1
    assert not (here / "checkpoints").exists()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_device("cuda", Launch(3, 4, 1)) == torch.device("cuda:1") == chosen[0]
    with pytest.raises(UserError, match=r"sees 2 CUDA GPUs .* --nproc_per_node=2"):
        own_device("auto", Launch(2, 3, 2))
    with pytest.raises(UserError, match="each process takes the GPU of its own number; use cuda"):
        own_device("cuda:1", Launch(1, 2, 1))
    assert own_device("cpu", Launch(2, 3, 2)) == torch.device("cpu")


@pytest.mark.parametrize("gpus", [False, True])
def test_nccl_is_for_gpus(monkeypatch, gpus):
    """A torch for GPUs on a machine without one: NCCL would refuse."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(meeting.dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(meeting, "_store", lambda *given: torch.distributed.HashStore())
    monkeypatch.setattr(meeting, "_name_of_start", lambda *given: "now")
    monkeypatch.setattr(meeting.dist, "init_process_group", lambda x, **how: chosen.append(x))
    assert meeting.join(Launch(1, 2), 5).rank == 1
    assert chosen == ["cpu:gloo,cuda:nccl" if gpus else "gloo"]


@pytest.mark.parametrize(("recording", "error"), [(False, RankLost), (True, RuntimeError)])
def test_what_cannot_be_recorded_is_no_lost_process(monkeypatch, recording, error):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recording)
    with pytest.raises(error, match="not permitted"), distributed._lost_is_told():
        raise RuntimeError("operation not permitted")


@pytest.mark.parametrize(
    "problem",
    [torch.OutOfMemoryError("full"), RuntimeError("NCCL error\nCuda failure 2 'out of memory'")],
)
def test_a_gpu_that_is_full_is_no_lost_process(problem):
    told = "^(full|Cuda failure 2 'out of memory')$"
    with pytest.raises(torch.OutOfMemoryError, match=told), distributed._lost_is_told():
        raise problem


def node(rank: int, port: int, *words: str) -> subprocess.Popen:
    """One of two machines, each with one process, as torchrun sees them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += [f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    words = ["-m", "fastcyclegan.train", *WORDS, *words]
    return subprocess.Popen(command + words, env=environment, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("--lr", "0.1"), r"rank 1 has another --lr \(0.1\) than rank 0 \(0.0002\): start all"),
        (("--dataroot", "other"), r"rank 1 has another set of images \(\w+\.\.\.\) than rank 0"),
    ],
)
def test_machines_with_other_options_or_images(here, other, said):
    """Under torchrun itself, which tells the exit codes."""
    make_images(here / "other/trainA", 5, seed=7)
    make_images(here / "other/trainB", 3, seed=8)
    port = free_port()
    with node(0, port) as first, node(1, port, *other) as second:
        told, silent = first.communicate(timeout=100)[0], second.communicate(timeout=100)[0]
    assert len(re.findall(f"^error: {said}.*$", told, re.MULTILINE)) == 1, told
    assert told.count("error: ") == 1 and "error: " not in silent, silent
    for output in (told, silent):
        assert re.search(r"exitcode +: 2 ", output), output
    assert not (here / "checkpoints").exists()
