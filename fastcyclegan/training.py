"""The training itself: data, networks, run folder, then one loop over the steps."""

import time
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastcyclegan.command import DONE, NOT_FINITE, NOT_SAVED
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.training_set import (
    WATCHED_IMAGES,
    TrainingSet,
    load_training_set,
    make_sampler,
)
from fastcyclegan.device import Precision, resolve_precision
from fastcyclegan.errors import UserError
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from fastcyclegan.runs.evaluation import preview_rows, psnr
from fastcyclegan.runs.folder import RunFolder, open_run
from fastcyclegan.runs.identity import digest_of, identity, machine
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.runs.previews import save_preview
from fastcyclegan.runs.progress import Progress
from fastcyclegan.runs.signals import StopRequest
from fastcyclegan.steps.assembly import check_image_sizes, make_networks, make_settings
from fastcyclegan.steps.compilation import compile_networks, missing_compiler
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN
from fastcyclegan.steps.losses import NAMES
from fastcyclegan.steps.schedule import Schedule
from fastcyclegan.steps.state import load_train_state, train_state
from fastcyclegan.version import __version__

SIGNAL_EXIT = 128


def train(config: TrainConfig, device: torch.device, console: Console) -> int:
    """Run the training that ``config`` describes, or go on with it; return the exit code.

    Raises:
        UserError: something named by the options cannot be used.
    """
    precision = resolve_precision(config.precision, device)
    torch.use_deterministic_algorithms(config.deterministic)
    images = load_training_set(config, console.print)
    check_image_sizes(config, images.set_A, images.set_B)
    sampler = make_sampler(config, images, device, precision.dtype)
    size_A, size_B = sampler.sizes
    if None in (size_A, size_B) and (config.pool_size or config.compile):
        flag = "--compile" if config.compile else f"--pool_size {config.pool_size}"
        raise UserError(
            f"{flag}: the images have different sizes after --preprocess {config.preprocess}; use "
            "one that ends in crop, or --pool_size 0 without --compile"
        )
    options = identity(config, images.digest, precision.name)
    folder = open_run(
        Path(config.checkpoints_dir), config.name, digest_of(options), config.resume, options
    )
    networks = make_networks(config, device)
    settings = make_settings(config, precision)
    shapes = ((config.input_nc, *(size_A or (0, 0))), (config.output_nc, *(size_B or (0, 0))))
    model = CycleGAN(networks, settings, *shapes)
    schedule = Schedule(
        sampler.epoch_length,
        config.batch_size,
        config.n_epochs,
        config.n_epochs_decay,
        config.steps,
        config.fit_schedule,
    )
    run = Run(config, device, precision, folder, model, schedule, images, console)
    return run.loop(sampler)


class Run:
    """One training in progress: the loop, and what is written at its ticks."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        precision: Precision,
        folder: RunFolder,
        model: CycleGAN,
        schedule: Schedule,
        images: TrainingSet,
        console: Console,
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.folder, self.model, self.schedule = folder, model, schedule
        self.images, self.console = images, console
        self.metrics = MetricsLog(folder.metrics)
        self.total = schedule.total_steps
        self.sums = torch.zeros(len(NAMES), device=device)
        self.summed = 0
        self.unsaved: str | None = None
        self.scores: dict[str, float] = {}

    def loop(self, sampler: Any) -> int:
        """Every step from the last checkpoint to the end; returns the exit code."""
        first = self._resume()
        if first >= self.total:
            self.console.print(
                f"run {self.folder.root} is finished at step {first}: raise --n_epochs, "
                "--n_epochs_decay or --steps to go on"
            )
            return DONE
        self._announce(first)
        step_function = STEPS[self.config.impl]
        number = torch.arange(self.config.batch_size, device=self.device)
        number += first * self.config.batch_size
        with StopRequest() as stop, Progress(self.total, first, self.console) as self.progress:
            self.marks = [(first, time.perf_counter())]
            for step in range(first, self.total):
                self.model.set_lr(self.config.lr * self.schedule.factor(step))
                real_A, real_B = sampler.batch(step)
                self.sums += step_function(self.model, real_A, real_B, number)
                self.summed += 1
                number += self.config.batch_size
                if not self._after(step + 1, first):
                    return NOT_FINITE
                if stop.signum:
                    return self._stop(step + 1, stop.signum)
        return self._finish()

    def _resume(self) -> int:
        """Go back to the newest sound checkpoint; returns the step to begin with."""

        def damaged(path: Path, reason: str) -> None:
            self.console.print(f"warning: checkpoint {path.name} is passed over: {reason}")

        found = latest_checkpoint(self.folder, on_damaged=damaged)
        if not found:
            self.metrics.rewind(-1)
            return 0
        step, path = found
        weights, tensors, state = load_checkpoint(path)
        for name, net in self.model.networks.items():
            net.load_state_dict(weights[name])
        load_train_state(self.model, tensors)
        self.sums.copy_(tensors["metrics/sums"])
        self.summed = state["summed"]
        self.metrics.rewind(step, self.summed)
        self.console.print(f"continuing run {self.folder.root} at step {step}")
        return step

    def _after(self, done: int, first: int) -> bool:
        """What is due once ``done`` steps are made; False if the losses are not finite."""
        config, last = self.config, done == self.total
        if done == first + 1:
            self._first_step()
        full = done % self._every(config.print_freq) == 0
        if (last or full) and not self._tick(done, full):
            return False
        if last or done % self._every(config.display_freq) == 0:
            self._preview(done)
        if last or done % self._save_every() == 0:
            self._save(done)
        return True

    def _every(self, images: int) -> int:
        return max(1, images // self.config.batch_size)

    def _save_every(self) -> int:
        epochs = self.config.save_epoch_freq * self.schedule.images_per_epoch
        return self.config.save_every_steps or self._every(epochs)

    def _announce(self, first: int) -> None:
        config, folder = self.config, self.folder
        folder.update_config(
            finished=False,
            train=asdict(config),
            version=__version__,
            machine=machine(self.device),
        )
        folder.write_quarantine(self.images.quarantined)
        if not first:
            self._note_quarantine()
        self.console.print(
            f"{config.netG} ngf {config.ngf}, {self.precision.name} on {self.device}, "
            f"{self.total} steps of batch {config.batch_size}; run folder {folder.root}"
        )
        if not config.compile:
            return
        lack = missing_compiler(self.device)
        if lack:
            self.console.print(f"--compile: {lack}; running eager instead")
            return
        compile_networks(self.model.networks.values())
        self.console.print(
            "compiling both generators and discriminators with torch.compile: about a minute the "
            "first time, seconds when cached"
        )

    def _note_quarantine(self) -> None:
        if self.images.quarantined:
            count = len(self.images.quarantined)
            self.metrics.write("event", 0, event="quarantine", files=count)

    def _first_step(self) -> None:
        self._synchronize()
        seconds = time.perf_counter() - self.marks[0][1]
        if self.config.compile:
            self.progress.say(f"first step, with compilation: {seconds:.0f} s")
        # speed is counted from here, without the compilation
        self.marks = [(self.marks[0][0] + 1, time.perf_counter())]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _tick(self, done: int, full: bool) -> bool:
        """Read the losses, the one host sync, and write them; False if one is not finite.

        The sums of a tick that the end of the training cut short are kept, so that a run that is
        continued later writes the same rows as one that never ended there.
        """
        values = (self.sums / self.summed).tolist()
        losses = dict(zip(NAMES, values, strict=True))
        if full:
            self.sums.zero_()
            self.summed = 0
        (since, then), now = self.marks[-1], time.perf_counter()
        speed = (done - since) * self.config.batch_size / (now - then) if done > since else nan
        self.marks = [(done, now)]
        images = done * self.config.batch_size
        lr = self.config.lr * self.schedule.factor(done - 1)
        epoch = self.schedule.epoch(done - 1)
        row = {"images": images, "epoch": epoch, "lr_G": lr, "lr_D": lr, "img_per_s": speed}
        self.metrics.write("train", done, **row, **losses)
        self.progress.tick(done, losses, speed)
        finite = all(map(isfinite, values))
        if not finite:
            self.metrics.write("event", done, event="not finite")
            self.progress.say(
                f"error: a loss is not finite at step {done}; nothing was saved since the last "
                f"checkpoint in {self.folder.ckpt}: try a lower --lr or --precision fp32"
            )
        return finite

    def _preview(self, done: int) -> None:
        started = time.perf_counter()
        nets, watched = self.model.networks, self.images.watched
        real = watched.real_A.to(self.device), watched.real_B.to(self.device)
        rows = preview_rows(nets["G_A"], nets["G_B"], *real)
        try:
            shown = {label: x[:WATCHED_IMAGES] for label, x in rows.items()}
            save_preview(self.folder.preview(done), shown)
        except (OSError, UserError) as problem:
            self.progress.say(f"warning: no preview of step {done}: {problem}")
        if watched.truth_A is not None:
            self.scores = {
                "psnr_B": psnr(rows["fake_B"], watched.truth_B),
                "psnr_A": psnr(rows["fake_A"], watched.truth_A),
            }
            self.metrics.write("eval", done, **self.scores, **watched.baselines)
        self._not_training(started)

    def _save(self, done: int) -> None:
        started = time.perf_counter()
        tensors = train_state(self.model) | {"metrics/sums": self.sums}
        state = {"step": done, "summed": self.summed}
        try:
            save_checkpoint(
                self.folder, done, self.model.networks, tensors, state, keep=self.config.keep
            )
            self.unsaved = None
        except (OSError, RuntimeError) as problem:
            self.unsaved = f"the checkpoint of step {done} could not be saved: {problem}"
            self.progress.say(f"warning: {self.unsaved}")
            self.metrics.write("event", done, event="save failed", reason=str(problem))
        self._not_training(started)

    def _not_training(self, started: float) -> None:
        """Leave the time since ``started`` out of the speed."""
        since, then = self.marks[-1]
        self.marks = [(since, then + time.perf_counter() - started)]

    def _stop(self, done: int, signum: int) -> int:
        self._save(done)
        self.metrics.write("event", done, event="interrupted", signal=signum)
        self.progress.say(f"stopped at step {done}; the same command again continues the run")
        return NOT_SAVED if self.unsaved else SIGNAL_EXIT + signum

    def _finish(self) -> int:
        if self.unsaved:
            self.console.print(f"error: {self.unsaved}")
            return NOT_SAVED
        self.folder.update_config(finished=True)
        if self.scores:
            self._compare_with_truth()
        root = self.folder.root
        self.console.print(f"done: weights in {root / 'weights'}, previews in {root / 'previews'}")
        self.console.print(
            f"translate with: python -m fastcyclegan.translate --weights {root} --input IMAGES "
            "--output FOLDER"
        )
        return DONE

    def _compare_with_truth(self) -> None:
        baselines = self.images.watched.baselines
        for domain, arrow in (("B", "A -> B"), ("A", "B -> A")):
            self.console.print(
                f"{arrow}: held-out PSNR {self.scores[f'psnr_{domain}']:.1f} dB; untranslated "
                f"{baselines[f'input_psnr_{domain}']:.1f} dB, best affine colour map "
                f"{baselines[f'affine_psnr_{domain}']:.1f} dB"
            )
