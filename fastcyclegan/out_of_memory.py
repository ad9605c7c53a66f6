"""Out of GPU memory: what was asked for, what there is, and the largest batch that fits."""

import re
from collections.abc import Callable

import torch

from fastcyclegan.systems import System

_ASKED = re.compile(r"Tried to allocate ([0-9.]+ \w+)")


def explain(system: System, batch: Callable[[], tuple[torch.Tensor, ...]], problem: str) -> str:
    """One line about a step that did not fit; smaller ones are tried, which spoils the model.

    Args:
        system: what was trained.
        batch: makes the images of the step again.
        problem: torch's message.
    """
    batch_size = system.config.batch_size
    if system.ranks.many:
        # the others would have to try as well
        return f"out of memory: {problem.partition(chr(10))[0]}; lower --batch_size"

    def fits(n: int) -> bool:
        try:
            images = [x[:n] for x in batch()]
            system.step(system.model, *images, torch.arange(n, device=system.device))
            if system.device.type == "cuda":
                torch.cuda.synchronize(system.device)
        except RuntimeError:  # cuDNN has other words for it
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    torch.cuda.empty_cache()
    # Compiled for each size that is tried, it would take minutes.
    with torch.compiler.set_stance("force_eager"):
        fitting = largest(fits, batch_size)
    return told(problem, memory(system.device), batch_size, fitting)


def memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return free, total


def largest(fits: Callable[[int], bool], asked: int) -> int:
    """The largest batch below ``asked`` that fits, in a few trials; 0 if none does."""
    below, above = 0, asked
    n = asked // 2
    while above - below > 1:
        if fits(n):
            below = n
        else:
            above = n
        n = (below + above) // 2
    return below


def told(problem: str, memory: tuple[int, int], batch_size: int, fitting: int) -> str:
    """The line itself; ``memory``: (free, total) bytes."""
    found = _ASKED.search(problem)
    asked = f"{found[1]} more" if found else "more"
    free, total = (f"{x / 2**30:.1f} GiB" for x in memory)
    advice = f"--batch_size {fitting} is the largest that fits"
    if not fitting:
        advice = "not even --batch_size 1 fits: lower --crop_size, --ngf or --ndf"
    return (
        f"out of memory: a step of --batch_size {batch_size} asked for {asked} than there is; the "
        f"GPU has {total}, and {free} are free between two steps; {advice}"
    )
