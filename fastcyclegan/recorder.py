"""What a training writes: losses at ticks, previews, checkpoints; and the clock of its speed."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import ceil, isfinite, nan
from typing import Any

import torch
from safetensors import SafetensorError

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.images import one_line
from fastcyclegan.errors import UserError
from fastcyclegan.judge import Judge
from fastcyclegan.runs.checkpoint import StaleWeights, take_snapshot, write_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.runs.progress import Progress
from fastcyclegan.runs.report.live import LiveReport
from fastcyclegan.runs.tracking import Tracking
from fastcyclegan.runs.writer import Writer
from fastcyclegan.skips import Skips, told
from fastcyclegan.steps.schedule import Plateau, Schedule
from fastcyclegan.steps.state import train_state
from fastcyclegan.systems import System

# A preview of photographs takes megabytes: a run writes about this many at most.
PREVIEWS = 100


class Recorder:
    """Accumulates losses on the device and writes what is due after each step.

    Attributes:
        scores: what the last preview measured, by name.
        skips: the steps that were not finite.
        judge: of the networks, with ``--eval_every``.
        unsaved: why the last checkpoint, or weights/ beside it, could not be saved, or None; up to
            date after :meth:`settle`.
        progress: what the terminal shows, from :meth:`start` on.
        say: is given each line for the user; does not break that.
    """

    progress: Progress

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        system: System,
        schedule: Schedule,
        plateau: Plateau | None,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.folder, self.system = config, folder, system
        self.model, self.schedule, self.plateau = system.model, schedule, plateau
        self.say = say
        self.metrics = MetricsLog(folder.metrics)
        self.tracking = Tracking(config.track, folder, say)
        self.report = LiveReport(folder, say)
        self.skips = Skips(config, folder, system)
        self.judge = Judge(config, folder, system)
        # of the steps of this tick that counted, and how many these are
        self.sums = torch.zeros(len(system.LOSSES) + 1, device=system.device)
        self.summed = 0
        self._writer, self._writing = Writer(), 0
        self.unsaved: str | None = None
        self._saved: int | None = None
        self.scores: dict[str, float] = {}
        self._record_failed = False
        self._mark = (0, 0.0)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it besides ``sums``, as JSON can hold it."""
        state: dict[str, Any] = {"summed": self.summed, "skips": self.skips.state()}
        return state | ({"plateau": self.plateau.state()} if self.plateau else {})

    def load(self, sums: torch.Tensor, state: Mapping[str, Any]) -> None:
        """Go on from ``sums``, and from what :meth:`state` returned. Raises KeyError."""
        self.sums.copy_(sums)
        self._saved = None  # after going back, a step is another one
        self.summed = state["summed"]
        self.skips.load(state["skips"])
        if self.plateau:
            self.plateau.load(state["plateau"])

    def rewind(self, step: int) -> None:
        """Drop the metrics of what is about to be done again. Raises OSError."""
        self.folder.require_ours()
        self.metrics.rewind(step or -1, self.summed)
        self.tracking.rewind(step, step - self.summed if step else -1)

    def start(self, first: int, progress: Progress) -> None:
        """Begin at step ``first``; ``progress`` is told from now on."""
        self.progress, self.say = progress, progress.say
        self.count_from(first)

    def count_from(self, step: int) -> None:
        """Measure the speed anew, from ``step`` on."""
        self._mark = (step, time.perf_counter())

    def restart_clock(self) -> float:
        """Seconds since :meth:`start`; the speed is counted anew, from the step behind it."""
        first, then = self._mark
        self._mark = (first + 1, time.perf_counter())
        return self._mark[1] - then

    def count(self, losses: torch.Tensor) -> None:
        """Count in ``losses``, in the order of LOSSES: device work of the step, which is captured.

        No host sync.
        """
        shut = self.model.gate.shut.bool()
        self.sums[:-1] += torch.where(shut, 0.0, losses)
        self.sums[-1] += ~shut

    def after_step(self, done: int, lr: float) -> None:
        """Write what is due after step number ``done``, whose losses :meth:`count` was told.

        After that ``skips.too_many`` says whether to go back.

        Args:
            done: steps made, this one included.
            lr: the learning rate of the step.
        """
        self.summed += 1
        last, full = done == self.schedule.total_steps, self._fills_tick(done)
        if last or full:
            self._tick(done, full, lr)
        self._show(done, last)
        if last or self._is_due(done):
            self.save(done)

    def _fills_tick(self, done: int) -> bool:
        return done % self._every(self.config.print_freq) == 0

    def _every(self, images: int) -> int:
        return max(1, images // self.config.batch_size)

    def _is_due(self, done: int) -> bool:
        """Whether a checkpoint is."""
        epochs = self.config.save_epoch_freq * self.schedule.images_per_epoch
        spacing = self.config.save_every_steps or self._every(epochs)
        return done % spacing == 0 or self._is_milestone(done)

    def _is_milestone(self, done: int) -> bool:
        epochs = self.config.milestone_epochs * self.schedule.images_per_epoch
        return epochs > 0 and done % self._every(epochs) == 0

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Write a row of metrics; if that fails, say so once and go on: it waits for the next."""
        try:
            self.folder.require_ours()
            for row in self.metrics.write(kind, step, **values):
                self.tracking.row(row)
            self._record_failed = False
        except OSError as problem:
            if not self._record_failed:
                self.say(f"warning: {self.metrics.path}: {problem.strerror}")
            self._record_failed = True

    def _tick(self, done: int, full: bool, lr: float) -> None:
        """Read the losses, the one host sync, and write them.

        The sums of a tick that the end of the training cut short are kept, so that a run that is
        continued later writes the same rows as one that never ended there.
        """
        *sums, counted = self._read_sums(full)
        losses = {
            name: total / counted if counted else nan
            for name, total in zip(self.system.LOSSES, sums, strict=True)
        }
        (since, then), now = self._mark, time.perf_counter()
        speed = (done - since) * self.config.batch_size / (now - then) if done > since else nan
        self._mark = (done, now)
        row = {"images": done * self.config.batch_size, "epoch": self.schedule.epoch(done - 1)}
        self.record("train", done, **row, lr_G=lr, lr_D=lr, img_per_s=speed, **losses)
        self.progress.tick(done, losses, speed)
        self._read_skips(done)
        if self._writer.ready:
            self.settle()
        self.report.tick(done)

    def _read_sums(self, full: bool) -> list[float]:
        sums = self.sums.tolist()
        self.skips.spoilt |= not all(map(isfinite, sums))
        if full:
            self.sums.zero_()
            self.summed = 0
        return sums

    def _read_skips(self, done: int) -> None:
        events = list(self.skips.read(done))
        for event in events:
            self.record("event", **event)
        if events:
            self.say(f"warning: {told(events)}")
        if self.skips.unstored:
            self.say(f"warning: no repro could be stored: {self.skips.unstored}")
            self.skips.unstored = None

    def _show(self, done: int, last: bool) -> None:
        """The preview and the scores that are due, in one row."""
        spacing = ceil(self.schedule.total_steps / PREVIEWS)
        started, scores = time.perf_counter(), {}
        if last or done % max(spacing, self._every(self.config.display_freq)) == 0:
            scores |= self._preview(done)
        if self.judge.due(done, last):
            scores |= self._judge(done)
        if scores:
            self.record("eval", done, **scores)
        self._not_training(started)

    def _judge(self, done: int) -> dict[str, float]:
        """Score the networks and keep the best; what fails at that does not end the training."""
        scores: dict[str, float] = {}
        try:
            scores = self.judge.scores()
            self.folder.require_ours()
            kept = self.judge.keep(done, scores)
        except (UserError, OSError, RuntimeError, SafetensorError, MemoryError) as problem:
            what = "the best networks could not be kept" if scores else "not scored"
            reason = one_line(str(problem)) or type(problem).__name__
            kept = f"warning: step {done}: {what}: {reason}"
        if kept:
            self.say(kept)
        return scores

    def _preview(self, done: int) -> dict[str, float]:
        """Draw it, and return its scores; what fails at that does not end the training."""
        scores: dict[str, float] = {}
        try:
            shown = self.system.show()
            scores = shown.scores
            self.folder.require_ours()
            self.system.draw(self.folder.preview(done), shown.rows)
            self.tracking.preview(done)
        except (OSError, UserError, RuntimeError, MemoryError) as problem:
            reason = one_line(str(problem)) or type(problem).__name__
            self.say(f"warning: no preview of step {done}: {reason}")
        self.scores = scores or self.scores
        return scores

    def save(self, done: int) -> None:
        """Begin to write the checkpoint of ``done`` steps, unless it is one to go back from.

        The training waits for a copy of the state, and for the checkpoint before if that is still
        being written. One of this step that is written already stays.
        """
        started = time.perf_counter()
        self.settle()
        if self._saved == done:
            return
        self._read_skips(done)
        self.skips.spoilt |= not self._is_finite()
        if not self.skips.too_many:
            tensors = train_state(self.model) | {"metrics/sums": self.sums}
            networks, pixels = self.model.networks, self.config.pixel_range
            milestone = self._is_milestone(done)
            snapshot = take_snapshot(done, networks, tensors, self.state(), milestone, pixels)
            self._writing = done
            keep = self.config.keep
            self._writer.submit(partial(write_checkpoint, self.folder, snapshot, keep))
        self._not_training(started)

    def settle(self) -> None:
        """Wait until the last checkpoint is written; a failure is told, and kept in ``unsaved``."""
        done, self._writing = self._writing, 0
        problem = self._writer.finish()
        if done and not problem:
            self.unsaved, self._saved = None, done
        if not problem:
            return
        if not isinstance(problem, OSError | RuntimeError | SafetensorError | MemoryError):
            raise problem
        reason = str(problem) or type(problem).__name__
        what = f"the checkpoint of step {done} could not be saved"
        if isinstance(problem, StaleWeights):
            what = f"weights/ could not be brought to step {done}, whose checkpoint is saved"
        self.unsaved = f"{what}: {reason}"
        self.say(f"warning: {self.unsaved}")
        self.record("event", done, event="save failed", reason=reason)

    def close(self) -> None:
        """Let go of what is written to; after the last step."""
        self.settle()
        with suppress(OSError):  # which was told
            self.folder.require_ours()
            for row in self.metrics.flush():
                self.tracking.row(row)
        self.tracking.close()
        self.report.close()

    def _is_finite(self) -> bool:
        masters = (p for weights in self.model.weights.values() for p in weights.masters)
        # A sum is finite if all of it is, and cheaper than a mask.
        sums = [tensor.sum(dtype=torch.float32) for tensor in (self.sums, *masters)]
        return bool(torch.stack(sums).isfinite().all())

    def _not_training(self, started: float) -> None:
        """Leave the time since ``started`` out of the speed."""
        since, then = self._mark
        self._mark = (since, then + time.perf_counter() - started)


class Bystander(Recorder):
    """In all processes but the first: comes to the same conclusions at the same steps, writes none.

    What takes the first process time is waited for where the next message is.
    """

    def after_step(self, done: int, lr: float) -> None:
        """Look where the first process looks."""
        self.summed += 1
        last, full = done == self.schedule.total_steps, self._fills_tick(done)
        if last or full:
            self._read_sums(full)
            self.skips.look()
        if last or self._is_due(done):
            self.save(done)

    def save(self, done: int) -> None:
        """Look at what the first process would save."""
        self.skips.look()
        self.skips.spoilt |= not self._is_finite()

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing was opened."""
