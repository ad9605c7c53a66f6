"""How this process was started: alone, or as one of several by torchrun.

torchrun tells each process its place in environment variables; whatever else sets RANK and
WORLD_SIZE, MASTER_ADDR and MASTER_PORT does as well.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """The place of this process among those that train together.

    Attributes:
        rank: its number, from 0; the first one speaks and writes.
        world: how many there are.
        local_rank: its number on this machine, which is that of its GPU.
        restarts: how often torchrun has started all of them again.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    restarts: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Launch":
        """What ``environment`` says; alone where it does not say."""
        rank, world = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
        restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        restarts = int(restarts) if restarts.isdecimal() else 0
        if not (rank.isdecimal() and world.isdecimal() and int(world) > 1):
            return cls(restarts=restarts)
        local = environment.get("LOCAL_RANK", rank)
        return cls(int(rank), int(world), int(local) if local.isdecimal() else 0, restarts)
