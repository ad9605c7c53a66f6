"""What a step is given: the images of its batch and their running numbers."""

from collections.abc import Callable

import torch

from fastcyclegan.skips import Skips
from fastcyclegan.steps.capture import CapturedStep, Recorder
from fastcyclegan.steps.model import Model
from fastcyclegan.systems import System


class Feed:
    """Takes the steps of a training, each with its images.

    A captured step draws its images itself, where they lie on the device: then a step is the launch
    of one graph. Otherwise they are drawn here, and handed over.

    Args:
        system: what is trained, by the step that its options ask for.
        skips: knows by how much the stream of images is ahead of the steps.
        recorder: to capture the step with; None to leave it uncaptured.
        say: is told once whether it was captured.
        count: is given the losses of each step, as a part of it: what it does there without a host
            sync is captured as well.
    """

    def __init__(
        self,
        system: System,
        skips: Skips,
        recorder: Recorder | None = None,
        say: Callable[[str], None] = lambda line: None,
        count: Callable[[torch.Tensor], None] = lambda losses: None,
    ) -> None:
        self._system, self._skips, self._count = system, skips, count
        self._batch = torch.arange(system.config.batch_size, device=system.device)
        self._number, self._shown = self._batch.clone(), self._batch.clone()
        self._inside = recorder is not None and system.sampler.resident
        self._step = self._draw_and_step if self._inside else self._step_on
        if recorder:
            self._step = CapturedStep(self._step, say, recorder, given_stays=self._inside)

    def go_to(self, step: int) -> None:
        """Let ``step`` be the next one."""
        size = len(self._batch)
        self._number.copy_(self._batch + step * size)
        self._shown.copy_(self._batch + (step + self._skips.offset) * size)

    def __call__(self, step: int) -> torch.Tensor:
        """Take ``step``, the one after the last; returns its losses on the device, without a sync.

        The next call may overwrite them.
        """
        model = self._system.model
        if self._inside:
            self._system.sampler.prepare(step + self._skips.offset)
            return self._step(model, self._number, self._shown)
        with model.phase("data"):
            images = self._skips.batch(step)
        losses = self._step(model, *images, self._number)
        self._number += len(self._batch)
        return losses

    def close(self) -> None:
        """Let go of the captured step: of its memory, and of what NCCL waits for when it ends.

        Not to be called again, nor for another step.
        """
        if isinstance(self._step, CapturedStep):
            self._step.close()
        del self._step  # which holds this feed, and so the messages that are on their way

    def _draw_and_step(
        self, model: Model, number: torch.Tensor, shown: torch.Tensor
    ) -> torch.Tensor:
        with model.phase("data"):
            images = self._system.sampler.at(model.ranks.own(shown))
        losses = self._step_on(model, *images, number)
        number += len(number)
        shown += len(shown)
        return losses

    def _step_on(self, model: Model, *given: torch.Tensor) -> torch.Tensor:
        losses = self._system.step(model, *given)
        self._count(losses)
        return losses
