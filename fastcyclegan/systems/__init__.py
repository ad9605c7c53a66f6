"""What can be trained: each system with its data, networks, step and pictures, behind one face."""

from collections.abc import Callable

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.device import Precision
from fastcyclegan.distributed import ALONE, Ranks
from fastcyclegan.systems.base import System
from fastcyclegan.systems.cyclegan import CycleGANSystem
from fastcyclegan.systems.dcgan import DCGANSystem

# By the name that --model has for it.
SYSTEMS: dict[str, type[System]] = {"cycle_gan": CycleGANSystem, "dcgan": DCGANSystem}

__all__ = ["SYSTEMS", "System", "make_system"]


def make_system(
    config: TrainConfig,
    device: torch.device,
    precision: Precision,
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> System:
    """The system that ``--model`` names, with its images decoded and its networks made.

    ``ranks`` are the processes that share each batch.

    Raises:
        UserError: images, weights or options that it cannot use.
    """
    return SYSTEMS[config.model](config, device, precision, say, ranks)
