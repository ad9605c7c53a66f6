"""When training ends and how the learning rate falls, both functions of the step number."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Schedule:
    """JZ's linear policy: constant for ``n_epochs``, then linearly towards zero.

    Attributes:
        images_per_epoch: size of the larger domain.
        batch_size: images of each domain per step.
        n_epochs, n_epochs_decay: epochs at the full rate, and epochs of decay.
        steps: stop after so many steps, or None for all epochs.
        fit: compress the epochs of the policy into ``steps``.
    """

    images_per_epoch: int
    batch_size: int
    n_epochs: int
    n_epochs_decay: int
    steps: int | None = None
    fit: bool = False

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        planned = ceil(self.images_per_epoch * self._epochs / self.batch_size)
        if self.steps is None:
            return planned
        return self.steps if self.fit else min(self.steps, planned)

    def epoch(self, step: int) -> int:
        """The epoch, from 1, of the first image of ``step`` (from 0)."""
        return 1 + step * self.batch_size // self.images_per_epoch

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in ``step`` (from 0)."""
        epoch = 1 + step * self._epochs // self.total_steps if self.fit else self.epoch(step)
        return 1.0 - max(0, epoch - self.n_epochs) / (self.n_epochs_decay + 1)

    @property
    def _epochs(self) -> int:
        return self.n_epochs + self.n_epochs_decay
