"""A step of ours and what it shows, by which it is judged before any figure of it is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastcyclegan.steps.model import Model

Step = Callable[[], torch.Tensor]
# Of a step's losses against those of the reference in fp32, relative to the largest of them.
LARGEST_ERROR = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 3e-2}
# Of the gradient of each convolution's weight, by norms. Rounding puts values on the other side of
# a ReLU: from 32 to 128 px fp32 is off by up to 6e-3, bf16 by 0.46, and by as much the reference
# under autocast. About twice that, or more, and below the 1 of a backward pass that gives nothing.
LARGEST_GRADIENT_ERROR = {"fp32": 2e-2, "tf32": 0.4, "bf16": 0.9}


class Seen(NamedTuple):
    """What some steps have shown, all with the weights of the start.

    Attributes:
        losses: of the last one, on the CPU.
        gradients: their sums, of the weight of each convolution, on the CPU.
        seconds: that the first one took.
    """

    losses: torch.Tensor
    gradients: Sequence[torch.Tensor]
    seconds: float


@dataclass(frozen=True, eq=False)
class OurStep:
    """A step of ours, taken by a call."""

    take: Step
    model: Model
    lr: float

    def __call__(self) -> torch.Tensor:
        return self.take()

    def seen(self, calls: int) -> Seen:
        """Take so many steps with a learning rate of 0.

        Weights that move take other ways within a few steps of rounding alone: what a later step
        shows, of a replay too, is only comparable where they stand still.
        """
        model = self.model
        model.set_lr(0.0)
        start = time.perf_counter()
        losses = self.take().detach().float().cpu()
        seconds = time.perf_counter() - start
        for _ in range(calls - 1):
            losses = self.take().detach().float().cpu()
        model.set_lr(self.lr)
        # Adam's first moments are what the gradients have summed up to
        gradients = [
            optimiser.state[p]["exp_avg"].float().cpu()
            for optimiser in model.optimisers.values()
            for p in optimiser.state
            if p.ndim == 4
        ]
        return Seen(losses, gradients, seconds)
