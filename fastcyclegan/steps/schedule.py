"""When training ends and how the learning rate falls.

Both are functions of the step number, except for the plateau policy, which follows the losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, inf, pi
from typing import Self

import torch

from fastcyclegan.config import TrainConfig

STEP_FACTOR = 0.1
PLATEAU_FACTOR, PLATEAU_THRESHOLD, PLATEAU_PATIENCE = 0.2, 0.01, 5
# torch's scheduler leaves the rate as it is where a cut would be smaller than this
PLATEAU_SMALLEST_CUT = 1e-8


@dataclass(frozen=True)
class Schedule:
    """The policies of JZ, by epochs; the rate changes at the ends of epochs only.

    linear: constant for ``n_epochs``, then linearly towards zero. article: the same, but it begins
    to fall an epoch later and by 1 / ``n_epochs_decay``. step: a tenth every ``lr_decay_iters``
    epochs. cosine: half a wave over all epochs. plateau: constant here, and :class:`Plateau` has
    the rest.

    Attributes:
        images_per_epoch: size of the larger domain.
        batch_size: images of each domain per step.
        n_epochs, n_epochs_decay: epochs at the full rate, and epochs of decay.
        steps: stop after so many steps, or None for all epochs.
        fit: compress the epochs of the policy into ``steps``.
        policy: ``linear``, ``article``, ``step``, ``plateau`` or ``cosine``.
        decay_iters: epochs between two cuts of the policy ``step``.
    """

    images_per_epoch: int
    batch_size: int
    n_epochs: int
    n_epochs_decay: int
    steps: int | None = None
    fit: bool = False
    policy: str = "linear"
    decay_iters: int = 50

    @classmethod
    def of(cls, config: TrainConfig, images_per_epoch: int) -> Self:
        """The schedule that the options ask for."""
        return cls(
            images_per_epoch,
            config.batch_size,
            config.n_epochs,
            config.n_epochs_decay,
            config.steps,
            config.fit_schedule,
            config.lr_policy,
            config.lr_decay_iters,
        )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        planned = -(-self.images_per_epoch * self._epochs // self.batch_size)
        if self.steps is None:
            return planned
        return self.steps if self.fit else min(self.steps, planned)

    def epoch(self, step: int) -> int:
        """The epoch, from 1, of the first image of ``step`` (from 0)."""
        return 1 + step * self.batch_size // self.images_per_epoch

    def policy_epoch(self, step: int) -> int:
        """As :meth:`epoch`, or the compressed epoch where the schedule is fitted into steps."""
        return 1 + step * self._epochs // self.total_steps if self.fit else self.epoch(step)

    def ends_epoch(self, step: int) -> bool:
        """Whether the step behind ``step`` belongs to another epoch of the policy."""
        return self.policy_epoch(step + 1) != self.policy_epoch(step)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in ``step`` (from 0)."""
        over = self.policy_epoch(step) - 1
        if self.policy == "step":
            return STEP_FACTOR ** (over // self.decay_iters)
        if self.policy == "cosine":
            return (1.0 + cos(pi * over / self._epochs)) / 2
        if self.policy == "plateau":
            return 1.0
        if self.policy == "article":
            return 1.0 - max(0, over - self.n_epochs) / max(1, self.n_epochs_decay)
        return 1.0 - max(0, over + 1 - self.n_epochs) / (self.n_epochs_decay + 1)

    @property
    def _epochs(self) -> int:
        return self.n_epochs + self.n_epochs_decay


@dataclass
class Plateau:
    """The plateau policy: a fifth of the rate whenever the metric has not fallen for long.

    At the end of an epoch, the mean of what was added since the last is compared with the best so
    far; an epoch is better if it is at least 1 % lower. After more than 5 epochs in a row that are
    not, the rate is cut. These are JZ's settings of torch's ReduceLROnPlateau.

    Attributes:
        lr: the learning rate of the first epoch.
        device: where what it is told is summed up.
        factor: what the rate is multiplied by now.
        best: the lowest mean of an epoch, None before the first.
        bad_epochs: how many epochs in a row were not better.
        sums: (2,) fp64, the sum of what was added in this epoch and how many these were; a captured
            step adds to it where it lies.
    """

    lr: float
    device: torch.device | str = "cpu"
    factor: float = 1.0
    best: float | None = None
    bad_epochs: int = 0

    def __post_init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def add(self, metric: torch.Tensor, counted: torch.Tensor | float = 1.0) -> None:
        """Count in ``metric``, 0-D, of one step, unless ``counted``, 0-D, is 0; no host sync."""
        counted = torch.as_tensor(counted, dtype=torch.float64, device=self.device)
        self.sums += torch.stack([torch.where(counted > 0, metric.double(), 0.0), counted])

    def end_epoch(self) -> None:
        """Judge the epoch and begin the next one; one host sync."""
        total, count = self.sums.tolist()
        mean = total / count if count else inf
        if self.best is None or mean < self.best * (1 - PLATEAU_THRESHOLD):
            self.best, self.bad_epochs = mean, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > PLATEAU_PATIENCE:
            self.bad_epochs = 0
            cut = self.lr * self.factor * (1 - PLATEAU_FACTOR)
            self.factor *= PLATEAU_FACTOR if cut > PLATEAU_SMALLEST_CUT else 1.0
        self.sums.zero_()

    def state(self) -> dict[str, float | int | None]:
        """All that changes, as JSON can hold it; one host sync."""
        total, count = self.sums.tolist()
        state = {name: getattr(self, name) for name in ("factor", "best", "bad_epochs")}
        return state | {"total": total, "count": count}

    def load(self, state: Mapping[str, float | int | None]) -> None:
        """Put back what :meth:`state` returned. Raises KeyError if a part is missing."""
        self.sums.copy_(torch.tensor([state["total"], state["count"]], dtype=torch.float64))
        self.factor, self.best = state["factor"], state["best"]
        self.bad_epochs = state["bad_epochs"]
