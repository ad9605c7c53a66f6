"""What a training writes: losses at ticks, previews, checkpoints; and the clock of its speed."""

import time
from collections.abc import Mapping
from math import ceil, isfinite, nan
from typing import Any

import torch

from fastcyclegan.command import NOT_FINITE, Stop
from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.runs.checkpoint import save_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.runs.progress import Progress
from fastcyclegan.steps.schedule import Plateau, Schedule
from fastcyclegan.steps.state import train_state
from fastcyclegan.systems import System

# A preview of photographs takes megabytes: a run writes about this many at most.
PREVIEWS = 100


class Recorder:
    """Accumulates losses on the device and writes what is due after each step.

    Attributes:
        scores: what the last preview measured, by name.
        unsaved: why the last checkpoint could not be saved, or None.
        progress: what the terminal shows, from :meth:`start` on.
    """

    progress: Progress

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        system: System,
        schedule: Schedule,
        plateau: Plateau | None,
    ) -> None:
        self.config, self.folder, self.system = config, folder, system
        self.model, self.schedule, self.plateau = system.model, schedule, plateau
        self.metrics = MetricsLog(folder.metrics)
        self.sums = torch.zeros(len(system.LOSSES), device=system.device)
        self.summed = 0
        self.unsaved: str | None = None
        self.scores: dict[str, float] = {}
        self._record_failed = False
        self._mark = (0, 0.0)

    def load(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's tensors and state."""
        self.sums.copy_(tensors["metrics/sums"])
        self.summed = state["summed"]
        if self.plateau:
            self.plateau.load(state["plateau"])

    def rewind(self, step: int) -> None:
        """Drop the metrics of what is about to be done again. Raises OSError."""
        self.metrics.rewind(step or -1, self.summed)

    def start(self, first: int, progress: Progress) -> None:
        """Begin at step ``first``; ``progress`` is told from now on."""
        self.progress = progress
        self._mark = (first, time.perf_counter())

    def restart_clock(self) -> float:
        """Seconds since :meth:`start`; the speed is counted anew, from the step behind it."""
        first, then = self._mark
        self._mark = (first + 1, time.perf_counter())
        return self._mark[1] - then

    def after_step(self, done: int, losses: torch.Tensor, lr: float) -> None:
        """Count in the losses of step number ``done``, and write what is due.

        Args:
            done: steps made, this one included.
            losses: in the order of the system's LOSSES, on the device.
            lr: the learning rate of the step.

        Raises:
            Stop: a loss or a weight is not finite.
        """
        self.sums += losses
        self.summed += 1
        last, config = done == self.schedule.total_steps, self.config
        full = done % self._every(config.print_freq) == 0
        if last or full:
            self._tick(done, full, lr)
        spacing = ceil(self.schedule.total_steps / PREVIEWS)
        if last or done % max(spacing, self._every(config.display_freq)) == 0:
            self._preview(done)
        if last or done % self._save_every() == 0:
            self.save(done)

    def _every(self, images: int) -> int:
        return max(1, images // self.config.batch_size)

    def _save_every(self) -> int:
        epochs = self.config.save_epoch_freq * self.schedule.images_per_epoch
        return self.config.save_every_steps or self._every(epochs)

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Write a row of metrics; if that fails, say so once and go on."""
        try:
            self.metrics.write(kind, step, **values)
        except OSError as problem:
            if not self._record_failed:
                self.progress.say(f"warning: {self.metrics.path}: {problem.strerror}")
            self._record_failed = True

    def _tick(self, done: int, full: bool, lr: float) -> None:
        """Read the losses, the one host sync, and write them.

        The sums of a tick that the end of the training cut short are kept, so that a run that is
        continued later writes the same rows as one that never ended there.
        """
        values = (self.sums / self.summed).tolist()
        losses = dict(zip(self.system.LOSSES, values, strict=True))
        if full:
            self.sums.zero_()
            self.summed = 0
        (since, then), now = self._mark, time.perf_counter()
        speed = (done - since) * self.config.batch_size / (now - then) if done > since else nan
        self._mark = (done, now)
        row = {"images": done * self.config.batch_size, "epoch": self.schedule.epoch(done - 1)}
        self.record("train", done, **row, lr_G=lr, lr_D=lr, img_per_s=speed, **losses)
        self.progress.tick(done, losses, speed)
        if not all(map(isfinite, values)):
            self._not_finite(done)

    def _not_finite(self, done: int) -> None:
        self.record("event", done, event="not finite")
        raise Stop(
            NOT_FINITE,
            f"a loss or a weight is not finite at step {done}; nothing of it was saved, the last "
            f"checkpoint stands in {self.folder.ckpt}: try a lower --lr or --precision fp32",
        )

    def _preview(self, done: int) -> None:
        started = time.perf_counter()
        shown = self.system.show()
        try:
            self.system.draw(self.folder.preview(done), shown.rows)
        except (OSError, UserError) as problem:
            self.progress.say(f"warning: no preview of step {done}: {problem}")
        if shown.scores:
            self.scores = shown.scores
            self.record("eval", done, **shown.scores)
        self._not_training(started)

    def save(self, done: int) -> None:
        """Write the checkpoint of ``done`` steps; a failure is told and kept in ``unsaved``.

        Raises:
            Stop: a loss or a weight is not finite; nothing is written then.
        """
        started = time.perf_counter()
        if not self._is_finite():
            self._not_finite(done)
        tensors = train_state(self.model) | {"metrics/sums": self.sums}
        state: dict[str, Any] = {"step": done, "summed": self.summed}
        if self.plateau:
            state["plateau"] = self.plateau.state()
        try:
            networks = self.model.networks
            save_checkpoint(self.folder, done, networks, tensors, state, keep=self.config.keep)
            self.unsaved = None
        except (OSError, RuntimeError) as problem:
            self.unsaved = f"the checkpoint of step {done} could not be saved: {problem}"
            self.progress.say(f"warning: {self.unsaved}")
            self.record("event", done, event="save failed", reason=str(problem))
        self._not_training(started)

    def _is_finite(self) -> bool:
        masters = (p for weights in self.model.weights.values() for p in weights.masters)
        flags = [torch.isfinite(tensor).all() for tensor in (self.sums, *masters)]
        return bool(torch.stack(flags).all())

    def _not_training(self, started: float) -> None:
        """Leave the time since ``started`` out of the speed."""
        since, then = self._mark
        self._mark = (since, then + time.perf_counter() - started)
