"""Several processes on gloo, for the tests of what they do together."""

import io
import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastcyclegan import command, train
from fastcyclegan.distributed import Ranks
from fastcyclegan.launch import Launch
from fastcyclegan.meeting import joined

TIMEOUT = 60


class Ended(NamedTuple):
    """How a command ended in one process."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_ranks(world: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What ``work`` returns in each of ``world`` processes that have met."""
    return in_processes(world, partial(_meet, free_port(), work))


def train_on_ranks(
    world: int, here: Path, cases: Sequence[Mapping[int, Sequence[str]] | Sequence[str]]
) -> list[list[Ended]]:
    """The train command in ``here``, once per case in each of ``world`` processes.

    A case is the words of the command, or those of each rank by its number.
    """
    ports = [free_port() for _ in cases]
    everyones = in_processes(world, partial(_train, here, ports, cases))
    return [list(of_case) for of_case in zip(*everyones, strict=True)]


def in_processes(world: int, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` returns in each of ``world`` processes, which know their place."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(world, mp_context=context) as pool:
        jobs = [pool.submit(_as_rank, work, rank, world) for rank in range(world)]
        return [job.result() for job in jobs]


def _as_rank(work: Callable[[], Any], rank: int, world: int) -> Any:
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    return work()


def _meet(port: int, work: Callable[[Ranks], Any]) -> Any:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(Launch.of(), TIMEOUT) as ranks:
        return work(ranks)


def _train(here: Path, ports: Sequence[int], cases: Sequence[Any]) -> list[Ended]:
    os.chdir(here)
    rank, ends = Launch.of().rank, []
    for port, case in zip(ports, cases, strict=True):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words = case[rank] if isinstance(case, Mapping) else case
        ends.append(ended(words))
    return ends


def ended(words: Sequence[str]) -> Ended:
    """How the train command ends with ``words``."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = command.run(train.main, list(words))
    return Ended(code, out.getvalue(), err.getvalue())
