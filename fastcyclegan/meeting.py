"""How the processes that train together meet, each started by itself, and part again."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from fastcyclegan.distributed import ALONE, Group, Ranks
from fastcyclegan.errors import SharedStop, UserError
from fastcyclegan.launch import Launch


def join(launch: Launch, timeout: float) -> Ranks:
    """Meet the other processes that were launched with this one.

    Args:
        launch: the place of this process.
        timeout: seconds that nothing may take which processes wait for: the meeting, a message.

    Raises:
        UserError: the port where they meet is taken, or they do not come.
    """
    if launch.world == 1:
        return ALONE
    here = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    # without a GPU NCCL refuses to be there at all
    nccl = dist.is_nccl_available() and torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    place = {"rank": launch.rank, "world_size": launch.world}
    place["timeout"] = timedelta(seconds=timeout)
    try:
        store = _store(place, timeout)
        store = dist.PrefixStore(_name_of_start(store, launch, timeout), store)
        dist.init_process_group(backend, store=store, **place)
    except (dist.DistNetworkError, TimeoutError) as problem:
        if "EADDRINUSE" in str(problem):
            raise UserError(
                f"port {here} is taken by another program: give torchrun another --master_port, or "
                "--standalone on one machine"
            ) from None
        raise UserError(f"rank 0 does not answer at {here} within {timeout:g} s") from None
    except (dist.DistStoreError, ValueError, RuntimeError) as problem:
        reason = (str(problem).splitlines() or [""])[0]
        raise UserError(f"the {launch.world} processes did not meet at {here}: {reason}") from None
    return Group(*launch[:3])


def _store(place: dict[str, Any], timeout: float) -> dist.Store:
    """Where processes meet. Raises TimeoutError: torch may wait for ever for what is no store."""
    found: Future[dist.Store] = Future()

    def look() -> None:
        try:
            store, *_ = next(rendezvous("env://", **place))
            found.set_result(store)
        except Exception as problem:
            found.set_exception(problem)

    threading.Thread(target=look, name="meeting", daemon=True).start()
    return found.result(timeout)


def _name_of_start(store: dist.Store, launch: Launch, timeout: float) -> str:
    """What the processes of this start alone call it. Raises DistStoreError: some do not come.

    torchrun's store outlives them, and what those before a restart left there is not for us. How
    often they were restarted is no name: each machine's torchrun counts by itself. So each process
    says that it has come, and the first one tells it the name where it waits for it now.
    """
    if launch.rank:
        coming = store.add(f"came/{launch.rank}", 1)
        name = store.get(f"name/{launch.rank}/{coming}").decode()
        store.set(f"{name}/{launch.rank}", "")
        return name
    name, missing = uuid4().hex, set(range(1, launch.world))
    end = time.monotonic() + timeout
    while missing:
        for rank in missing:
            store.set(f"name/{rank}/{store.add(f'came/{rank}', 0)}", name)
        missing = {rank for rank in missing if not store.check([f"{name}/{rank}"])}
        if missing and time.monotonic() > end:
            raise dist.DistStoreError(f"rank {min(missing)} has not come within {timeout:g} s")
        time.sleep(0.05 if missing else 0)
    return name


@contextmanager
def joined(launch: Launch, timeout: float) -> Iterator[Ranks]:
    """:func:`join`, and goodbye at the end if all processes come to it together."""
    ranks = join(launch, timeout)
    try:
        yield ranks
    except SharedStop:
        ranks.leave()
        raise
    ranks.leave()
