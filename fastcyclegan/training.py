"""The training itself: data, networks, run folder, then one loop over the steps."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from fastcyclegan.command import DONE, NOT_FINITE, NOT_SAVED, OUT_OF_MEMORY, Stop
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.images import one_line
from fastcyclegan.device import resolve_precision
from fastcyclegan.errors import UserError
from fastcyclegan.feed import Feed
from fastcyclegan.files import printable
from fastcyclegan.memory import keep_freed_memory
from fastcyclegan.out_of_memory import explain
from fastcyclegan.profiling import Profiler, check_profiling
from fastcyclegan.recorder import Recorder
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint
from fastcyclegan.runs.folder import RunFolder, differences, open_run
from fastcyclegan.runs.identity import digest_of, identity, machine
from fastcyclegan.runs.progress import Progress
from fastcyclegan.runs.signals import StopRequest
from fastcyclegan.steps.capture import CudaGraphs
from fastcyclegan.steps.compilation import compile_model, missing_compiler, require_kernels
from fastcyclegan.steps.schedule import Plateau, Schedule
from fastcyclegan.steps.state import load_train_state
from fastcyclegan.systems import System, make_system
from fastcyclegan.version import __version__

SIGNAL_EXIT = 128


def train(config: TrainConfig, device: torch.device, console: Console) -> int:
    """Run the training that ``config`` describes, or go on with it; return the exit code.

    Raises:
        UserError: something named by the options cannot be used.
    """
    _check_device(config, device)
    precision = resolve_precision(config.precision, device)
    torch.use_deterministic_algorithms(config.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
    system = make_system(config, device, precision, partial(console.print, soft_wrap=True))
    if config.cuda_graph == "on" and system.uncapturable:
        raise UserError(f"--cuda_graph on: {system.uncapturable}; leave it out")
    schedule = Schedule.of(config, system.sampler.epoch_length)
    check_profiling(config, device, schedule.total_steps)
    options = identity(config, system.images.digest, precision.name)
    place, digest = Path(config.checkpoints_dir), digest_of(options)
    folder = open_run(place, config.name, digest, config.resume, options, config.resume_force)
    with folder.locked():
        return Run(config, folder, system, schedule, options, console).loop()


def _check_device(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError if an option asks for what ``device`` cannot do."""
    if config.cuda_graph == "on" and device.type != "cuda":
        raise UserError(f"--cuda_graph on: {device} has no CUDA graphs; leave it out")
    joint = config.model == "cycle_gan" and config.updates == "joint"
    if config.twin_streams and not (joint and device.type == "cuda"):
        raise UserError("--twin_streams is for CycleGAN's joint updates on a GPU; leave it out")
    if config.impl == "fused":
        require_kernels(device, "--impl reference")
        return
    reflects = config.model == "cycle_gan" and config.netG.startswith("resnet")
    if config.deterministic and device.type == "cuda" and reflects:
        raise UserError(
            "--deterministic: on a GPU torch has no deterministic gradient of the reflection "
            "padding that --impl reference uses; leave one of the two out, or use --device cpu"
        )


class Run:
    """One training in progress: from its last checkpoint, step by step, to its end."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        system: System,
        schedule: Schedule,
        options: dict[str, object],
        console: Console,
    ) -> None:
        self.config, self.folder, self.system = config, folder, system
        self.options = options
        self.device, self.model, self.schedule = system.device, system.model, schedule
        self.console, self.say = console, partial(console.print, soft_wrap=True)
        self.total = schedule.total_steps
        self.plateau = Plateau(config.lr) if config.lr_policy == "plateau" else None
        self.recorder = Recorder(config, folder, system, schedule, self.plateau, self.say)
        self.skips = self.recorder.skips

    def loop(self) -> int:
        """Every step from the last checkpoint to the end; returns the exit code.

        Raises:
            Stop: the losses or weights are not finite, or the last checkpoint was not saved.
        """
        first = self._resume()
        if first >= self.total:
            return self._is_finished(first)
        profiler = self._profiler(first)
        self._begin(first)
        self._compile()
        with StopRequest() as stop, Progress(self.total, first, self.console) as progress, profiler:
            self.recorder.start(first, progress)
            try:
                return self._steps(first, stop, profiler)
            except torch.OutOfMemoryError as error:
                problem = str(error)
            finally:
                self.recorder.close()
        # Only here: the error's traceback held what the step had allocated.
        batch = partial(self.skips.batch, first)
        raise Stop(OUT_OF_MEMORY, explain(self.system, batch, problem))

    def _steps(self, first: int, stop: StopRequest, profiler: Profiler) -> int:
        recorder, take = self.recorder, self._feed()
        step = first
        take.go_to(step)
        while step < self.total:
            lr = self._learning_rate(step)
            self.model.set_lr(lr)
            with profiler.step(step):
                losses = take(step)
            self._follow(step, losses)
            recorder.after_step(step + 1, losses, lr)
            if step == first:
                self._first_step()
            step += 1
            if stop.signum and step < self.total:
                return self._stop(step, stop.signum)
            if self.skips.too_many:
                step = self._go_back(step)
                take.go_to(step)
        recorder.settle()
        return self._finish()

    def _feed(self) -> Feed:
        """What takes the steps, to be captured if that is asked for and possible."""
        wanted, graphs = self.config.cuda_graph, None
        asked = wanted == "on" or (wanted == "auto" and self.config.compile)
        if asked and self.device.type == "cuda":
            if self.system.uncapturable:
                self.say(f"the step runs uncaptured: {self.system.uncapturable}")
            else:
                graphs = CudaGraphs(self.device)
        return Feed(self.system, self.skips, graphs, self.recorder.progress.say)

    def _profiler(self, first: int) -> Profiler:
        where = self.folder.profile, self.say
        profiler = Profiler(self.config, self.device, first, self.total, *where)
        self.model.phase = profiler.phase
        return profiler

    def _learning_rate(self, step: int) -> float:
        falling = self.plateau.factor if self.plateau else 1.0
        return self.config.lr * self.schedule.factor(step) * falling

    def _follow(self, step: int, losses: torch.Tensor) -> None:
        """Tell the plateau policy, if it is chosen, the losses of ``step``."""
        if self.plateau:
            counted = 1 - self.model.gate.shut
            self.plateau.add(self.system.plateau_metric(losses), counted)
            if self.schedule.ends_epoch(step):
                self.plateau.end_epoch()

    def _resume(self) -> int:
        """Go back to the newest sound checkpoint; returns the step to begin with."""
        passed_over = []
        found = latest_checkpoint(self.folder, on_damaged=lambda *both: passed_over.append(both))
        for path, reason in passed_over:
            self.say(f"warning: checkpoint {path.name} is passed over: {reason}")
        if not found:
            if passed_over:
                raise UserError(
                    f"no checkpoint in {self.folder.ckpt} is sound: give another --name, or remove "
                    "that folder to start this run again"
                )
            return 0
        return self._restore(*found)

    def _restore(self, step: int, path: Path) -> int:
        weights, tensors, state = load_checkpoint(path)
        try:
            for name, net in self.model.networks.items():
                net.load_state_dict(weights[name])
            load_train_state(self.model, tensors)
            self.recorder.load(tensors, state)
        except (KeyError, RuntimeError) as problem:
            reason = one_line(str(problem))
            raise UserError(f"{path} does not fit these options: {reason}") from None
        return step

    def _go_back(self, done: int) -> int:
        """Go on from the last checkpoint with other images; returns its step.

        Raises:
            Stop: there is none, or that was tried already.
        """
        self.recorder.settle()
        problem, found = self.skips.told(done), latest_checkpoint(self.folder)
        if not found or self.skips.hopeless(done, found[0]):
            self.recorder.record("event", done, event="not finite")
            raise Stop(NOT_FINITE, self._not_finite(problem, found[1] if found else None))
        step = self._restore(*found)
        self.skips.go_back(step)
        self.recorder.rewind(step)
        self.recorder.count_from(step)
        self.recorder.record("event", step, event="went back", reached=done, reason=problem)
        self.recorder.progress.say(
            f"warning: {problem}; going on from the checkpoint of step {step} with other images"
        )
        return step

    def _not_finite(self, problem: str, last: Path | None) -> str:
        if last:
            stands = f" again, with other images, and nothing of it was saved: {last} stands"
        else:
            stands = ", and there is no checkpoint yet"
        return f"{problem}{stands}; try a lower --lr or --precision fp32"

    def _is_finished(self, first: int) -> int:
        self.folder.update_config(finished=True)
        advice = "raise --n_epochs, --n_epochs_decay or --steps to go on"
        if self.config.fit_schedule:
            advice = "its schedule was fitted into --steps; give another --name to train anew"
        self.say(f"run {printable(self.folder.root)} is finished at step {first}: {advice}")
        return DONE

    def _begin(self, first: int) -> None:
        config, folder = self.config, self.folder
        settled = {"train": asdict(config), "version": __version__, "machine": machine(self.device)}
        settled |= {"digest": digest_of(self.options), "options": self.options}
        settled |= {"total_steps": self.total}
        before = folder.read_config()
        try:
            folder.update_config(finished=False, **settled)
            folder.write_quarantine(self.system.images.quarantined)
            self.recorder.rewind(first)
        except OSError as problem:
            raise UserError(f"{folder.root}: cannot be written ({problem.strerror})") from None
        if first:
            self.say(f"continuing run {printable(folder.root)} at step {first}")
            if before.get("digest") != settled["digest"]:
                changed = differences(before.get("options"), self.options)
                self.recorder.record("event", first, event="forced", changed=changed)
                self.say(f"--resume_force: going on with other options ({changed})")
        elif self.system.images.quarantined:
            count = len(self.system.images.quarantined)
            self.recorder.record("event", 0, event="quarantine", files=count)
        self.say(
            f"{self.system.title}, {self.system.precision.name} on {self.device}, "
            f"{self.total} steps of batch {config.batch_size}; run folder {printable(folder.root)}"
        )

    def _compile(self) -> None:
        config = self.config
        for line in self.system.compile_notes():
            self.say(line)
        if not config.compile:
            return
        lack = missing_compiler(self.device)
        if lack:
            self.say(f"--compile: {lack}; running eager instead")
            return
        compile_model(self.model, config.compile_scope)
        parts = {"block": "block by block: about a minute", "step": "as a whole: some minutes"}
        self.say(
            f"compiling the networks with torch.compile, {parts[config.compile_scope]} the first "
            "time, seconds when cached"
        )

    def _first_step(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = self.recorder.restart_clock()
        if self.config.compile:
            self.recorder.progress.say(f"first step, with compilation: {seconds:.0f} s")

    def _stop(self, done: int, signum: int) -> int:
        self.recorder.save(done)
        self.recorder.settle()
        self.recorder.record("event", done, event="interrupted", signal=signum)
        if self.recorder.unsaved:
            raise Stop(NOT_SAVED, self.recorder.unsaved)
        if self.skips.too_many:
            self.say("the last steps were not finite, and nothing of them was saved")
        self.say(f"stopped at step {done}; the same command again continues the run")
        return SIGNAL_EXIT + signum

    def _finish(self) -> int:
        if self.recorder.unsaved:
            raise Stop(NOT_SAVED, self.recorder.unsaved)
        try:
            self.folder.update_config(finished=True)
        except OSError as problem:
            raise Stop(NOT_SAVED, f"{self.folder.config}: {problem.strerror}") from None
        for line in self.system.comparison(self.recorder.scores):
            self.say(line)
        if verdict := self.recorder.judge.verdict():
            self.say(verdict)
        root = printable(self.folder.root)
        self.say(f"done: weights in {root}/weights, previews in {root}/previews")
        self.say(f"all of it on one page: {root}/report.html")
        self.say(self.system.advice(root))
        return DONE
