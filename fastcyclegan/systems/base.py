"""The face that a system shows to the training loop, the recorder and the checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.survey import Survey
from fastcyclegan.device import Precision
from fastcyclegan.distributed import Ranks
from fastcyclegan.runs.previews import save_preview
from fastcyclegan.steps.model import Model, Step
from fastcyclegan.systems.exam import Exam


class Images(Protocol):
    """Everything that was decoded for a training."""

    @property
    def digest(self) -> str:
        """Of names, sizes and pixels, in hexadecimal."""

    @property
    def quarantined(self) -> list[tuple[Path, str]]:
        """Files passed over, with the reason."""


class Sampler(Protocol):
    """The stream of training batches."""

    @property
    def epoch_length(self) -> int:
        """Images per epoch."""

    @property
    def resident(self) -> bool:
        """Whether :meth:`at` is work of the device alone."""

    def batch(self, step: int, whole: bool = False) -> tuple[torch.Tensor, ...]:
        """The images of ``step``, a function of seed and step alone, as the step takes them.

        In one of several processes its own, or the ``whole`` batch.
        """

    def prepare(self, step: int) -> None:
        """Before :meth:`at` is called for ``step``; no host sync."""

    def at(self, number: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The images with the running numbers ``number``, of the step prepared for."""


class Shown(NamedTuple):
    """What fixed inputs show of a training.

    Attributes:
        rows: (N, C, H, W) in the options' pixel range on the CPU, by label.
        scores: what was measured on them, by name, for an ``eval`` row of the metrics.
    """

    rows: dict[str, torch.Tensor]
    scores: dict[str, float]


class System(ABC):
    """One kind of training.

    Attributes:
        LOSSES: names of what a step returns, in its order.
        STEPS: the step functions by ``--impl``, each called with the model, the images of a batch
            and their running numbers, (N,) int64; it returns (len(LOSSES),) without a host sync.
        images, sampler, model: what it trains on, the batches of that, and what it trains.
        ranks: the processes that share each batch.
        exam: what the networks are scored on with ``--eval_every``, or None.
    """

    LOSSES: ClassVar[tuple[str, ...]]
    STEPS: ClassVar[Mapping[str, Step]]
    images: Images
    sampler: Sampler
    model: Model
    exam: Exam | None = None

    def __init__(
        self, config: TrainConfig, device: torch.device, precision: Precision, ranks: Ranks
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.ranks = ranks

    @classmethod
    @abstractmethod
    def adopt(cls, config: TrainConfig, explicit: frozenset[str]) -> tuple[TrainConfig, str]:
        """``config`` with the networks of its ``init_from``, and a line that tells them.

        ``explicit`` are the names of the options that the user gave. Raises UserError.
        """

    @classmethod
    @abstractmethod
    def survey(cls, config: TrainConfig) -> Survey:
        """What the options would train on, by the headers of the files alone. Raises UserError."""

    @classmethod
    def few(cls, config: TrainConfig, count: int, scratch: Path) -> TrainConfig:
        """``config`` for about ``count`` images, the first ones; toy images go to ``scratch``."""
        count = min(count, config.max_dataset_size or count)
        return replace(config, max_dataset_size=count, max_bad=1.0, eval_every=None)

    @property
    def step(self) -> Step:
        """The step function that the options ask for."""
        return self.STEPS[self.config.impl]

    @property
    @abstractmethod
    def title(self) -> str:
        """What is trained, in a few words."""

    @property
    def uncapturable(self) -> str | None:
        """Why a step cannot be one CUDA graph, in a few words, or None if it can."""
        return None

    @property
    def uncompilable(self) -> str | None:
        """Why ``--compile`` leaves the networks as they are, in a few words, or None."""
        return None

    def image_names(self, step: int) -> dict[str, list[str]]:
        """Names of the images of the sampler's batch ``step``, by domain, in the batch's order."""
        raise NotImplementedError

    @abstractmethod
    def show(self) -> Shown:
        """What the networks make of fixed inputs now."""

    def draw(self, path: Path, rows: Mapping[str, torch.Tensor]) -> None:
        """Write the preview picture of ``rows``. Raises UserError, OSError."""
        save_preview(path, rows, self.config.pixel_range)

    def plateau_metric(self, losses: torch.Tensor) -> torch.Tensor:
        """What ``--lr_policy plateau`` follows, 0-D, from what a step returned."""
        return losses.sum()

    def compile_notes(self) -> Iterator[str]:
        """What ``--compile`` will not compile, in one line each."""
        yield from ()

    def comparison(self, scores: Mapping[str, Any]) -> Iterator[str]:
        """Lines that set the last ``scores`` beside what needs no network."""
        yield from ()

    @abstractmethod
    def advice(self, root: str) -> str:
        """What to do with the weights of the run folder ``root``, in one line."""
