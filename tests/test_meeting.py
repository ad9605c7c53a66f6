"""Processes that were started together find each other, whatever those before them have left."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch import distributed as dist

from fastcyclegan.launch import Launch
from fastcyclegan.meeting import _name_of_start


@pytest.fixture
def store() -> dist.Store:
    """Torchrun's, which outlives what it starts."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=10))
    return store


def names(store: dist.Store, *restarts: int) -> set[str]:
    """What processes that were restarted so often call this start."""
    launches = [Launch(rank, len(restarts), 0, count) for rank, count in enumerate(restarts)]
    with ThreadPoolExecutor(len(launches)) as pool:
        found = [pool.submit(_name_of_start, store, launch, 10) for launch in launches[::-1]]
        return {name.result() for name in found}


def test_every_start_has_a_name_of_its_own(store):
    """Though torchrun counts them on each machine by itself; and some process may never come."""
    (first,), (second,) = names(store, 0, 0, 0), names(store, 0, 1, 1)
    with pytest.raises(dist.DistStoreError, match="rank 1 has not come within"):
        _name_of_start(store, Launch(0, 3, 0, 0), 0.1)
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(dist.DistStoreError):
        _name_of_start(store, Launch(2, 3, 0, 1), 0.1)
    store.set_timeout(timedelta(seconds=10))
    (third,) = names(store, 2, 1, 0)
    assert len({first, second, third}) == 3
