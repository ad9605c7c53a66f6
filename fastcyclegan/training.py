"""The training itself: data, networks, run folder, then one loop over the steps."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from fastcyclegan.command import DONE, NOT_FINITE, NOT_SAVED, OUT_OF_MEMORY, Stop
from fastcyclegan.config import TrainConfig
from fastcyclegan.distributed import ALONE, Ranks
from fastcyclegan.errors import UserError
from fastcyclegan.feed import Feed
from fastcyclegan.files import printable
from fastcyclegan.launch import Launch
from fastcyclegan.out_of_memory import explain
from fastcyclegan.preparation import prepare, sharing
from fastcyclegan.profiling import Profiler
from fastcyclegan.recorder import Bystander, Recorder
from fastcyclegan.resuming import newest, restore
from fastcyclegan.runs.checkpoint import latest_checkpoint, refresh_weights
from fastcyclegan.runs.folder import RunFolder, differences, open_run
from fastcyclegan.runs.identity import digest_of, machine
from fastcyclegan.runs.progress import Progress
from fastcyclegan.runs.signals import SIGNAL_EXIT, StopRequest
from fastcyclegan.runs.terminal import Terminal
from fastcyclegan.skips import in_vain
from fastcyclegan.steps.capture import CudaGraphs
from fastcyclegan.steps.compilation import compile_model, missing_compiler
from fastcyclegan.steps.schedule import Plateau, Schedule
from fastcyclegan.steps.state import train_state
from fastcyclegan.systems import System
from fastcyclegan.version import __version__

# Where nothing can be read or written.
NO_FOLDER = RunFolder(Path(os.devnull))


def train(
    config: TrainConfig, device: torch.device, console: Terminal, ranks: Ranks = ALONE
) -> int:
    """Run the training that ``config`` describes, or go on with it; return the exit code.

    Of several processes, ``ranks``, each calls this with a device of its own.

    Raises:
        UserError: something named by the options cannot be used.
    """
    say = partial(console.print, soft_wrap=True)
    system, schedule, options = prepare(config, device, say, ranks)
    place, digest = Path(config.checkpoints_dir), digest_of(options)
    resume = "auto" if ranks.any(Launch.of().restarts > 0) else config.resume
    with ExitStack() as held:

        def opened() -> RunFolder:
            folder = open_run(place, config.name, digest, resume, options, config.resume_force)
            folder = held.enter_context(folder.locked())
            folder.remove_leftovers()
            if folder.lock.warning:
                say(folder.lock.warning)
            return folder

        if ranks.first:
            folder = ranks.together(opened)
            return Run(config, folder, system, schedule, options, console).loop()
        ranks.together(lambda: None)
        config = replace(config, track=None, profile=None, profile_steps=None)
        return Member(config, NO_FOLDER, system, schedule, options, console).loop()


class Run:
    """One training in progress: from its last checkpoint, step by step, to its end."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        system: System,
        schedule: Schedule,
        options: dict[str, object],
        console: Terminal,
    ) -> None:
        self.config, self.folder, self.system = config, folder, system
        self.options = options
        self.device, self.model, self.schedule = system.device, system.model, schedule
        self.ranks = system.ranks
        self.console, self.say = console, partial(console.print, soft_wrap=True)
        self.total = schedule.total_steps
        self.plateau = Plateau(config.lr, self.device) if config.lr_policy == "plateau" else None
        recorder = Recorder if self.ranks.first else Bystander
        self.recorder = recorder(config, folder, system, schedule, self.plateau, self.say)
        self.skips = self.recorder.skips
        self._compiled = False

    def loop(self) -> int:
        """Every step from the last checkpoint to the end; returns the exit code.

        Raises:
            Stop: the losses or weights are not finite, or the last checkpoint was not saved.
        """
        first = self._in_step(self.ranks.together(self._resume))
        if first >= self.total:
            return self.ranks.together(partial(self._is_finished, first))
        profiler = self.ranks.together(partial(self._profiler, first))
        self.ranks.together(partial(self._begin, first))
        self._compile()
        with StopRequest() as stop, Progress(self.total, first, self.console) as progress, profiler:
            self.console.output.on_gone = stop.reader_gone
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
        recorder, step = self.recorder, first
        with closing(self._feed()) as take:
            take.go_to(step)
            while step < self.total:
                lr = self._learning_rate(step)
                self.model.set_lr(lr)
                with profiler.step(step), stop.excused():
                    take(step)
                if self.plateau and self.schedule.ends_epoch(step):
                    self.plateau.end_epoch()
                recorder.after_step(step + 1, lr)
                if step == first:
                    self._first_step()
                step += 1
                signum = self.ranks.loudest(stop.signum)
                if signum and step < self.total:
                    # torchrun ends all processes when the first of them goes: none before the save
                    return self.ranks.together(partial(self._stop, step, signum))
                if self.skips.too_many:
                    step = self._in_step(self.ranks.together(partial(self._go_back, step)))
                    take.go_to(step)
        recorder.settle()
        return self.ranks.together(self._finish)

    def _feed(self) -> Feed:
        return Feed(self.system, self.skips, self._graphs(), self.recorder.say, self._count)

    def _graphs(self) -> CudaGraphs | None:
        """Where the step is to be captured, if that is asked for and possible."""
        wanted = self.config.cuda_graph
        asked = wanted == "on" or (wanted == "auto" and self.config.compile)
        if not asked or self.device.type != "cuda":
            return None
        if self.system.uncapturable:
            self.say(f"the step runs uncaptured: {self.system.uncapturable}")
            return None
        return CudaGraphs(self.device)

    def _profiler(self, first: int) -> Profiler:
        where = self.folder.profile, self.say
        profiler = Profiler(self.config, self.device, first, self.total, *where)
        self.model.phase = profiler.phase
        return profiler

    def _learning_rate(self, step: int) -> float:
        falling = self.plateau.factor if self.plateau else 1.0
        return self.config.lr * self.schedule.factor(step) * falling

    def _count(self, losses: torch.Tensor) -> None:
        """Tell whoever follows them the ``losses`` of a step; a part of that step."""
        self.recorder.count(losses)
        if self.plateau:
            self.plateau.add(self.system.plateau_metric(losses), 1 - self.model.gate.shut)

    def _resume(self) -> int:
        """Go back to the newest sound checkpoint; returns the step to begin with."""
        found = newest(self.folder, self.say)
        if not found:
            return 0
        restore(self.model, self.recorder.load, found[1])
        with self._writable():
            refresh_weights(self.folder, *found)
        return found[0]

    def _in_step(self, step: int) -> int:
        """Bring all processes to where the first one is after ``step`` steps; returns those."""
        if not self.ranks.many:
            return step
        step, state = self.ranks.told((step, self.recorder.state()))
        networks = self.model.networks.values()
        self.ranks.spread(x for net in networks for x in net.state_dict().values())
        self.ranks.spread([*train_state(self.model).values(), self.recorder.sums])
        self.model.refresh_weights()
        self.recorder.load(self.recorder.sums, state)
        return step

    def _go_back(self, done: int) -> int:
        """Go on from the last checkpoint with other images; returns its step.

        Raises:
            Stop: there is none, or that was tried already.
        """
        self.recorder.settle()
        problem = self.skips.told(done)
        try:
            step = self._load_last(done, problem)
            self.recorder.rewind(step)
        except OSError as error:
            root = printable(self.folder.root)
            reason = f"{root} cannot be brought back to its last checkpoint ({error.strerror})"
            raise Stop(NOT_SAVED, f"{problem}, and {reason}") from None
        self.recorder.count_from(step)
        self.recorder.record("event", step, event="went back", reached=done, reason=problem)
        self.recorder.say(
            f"warning: {problem}; going on from the checkpoint of step {step} with other images"
        )
        return step

    def _load_last(self, done: int, problem: str) -> int:
        self.folder.require_ours()
        found = latest_checkpoint(self.folder)
        if not found or self.skips.hopeless(done, found[0]):
            self.recorder.record("event", done, event="not finite")
            raise Stop(NOT_FINITE, in_vain(problem, found[1] if found else None))
        step, path = found
        restore(self.model, self.recorder.load, path)
        self.skips.go_back(step)
        return step

    def _is_finished(self, first: int) -> int:
        with self._writable():
            if not self.folder.finished:
                self.folder.update_config(finished=True)
        advice = "raise --n_epochs, --n_epochs_decay or --steps to go on"
        if self.config.fit_schedule:
            advice = "its schedule was fitted into --steps; give another --name to train anew"
        self.say(f"run {printable(self.folder.root)} is finished at step {first}: {advice}")
        return DONE

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            place = printable(problem.filename or self.folder.root)
            raise UserError(f"{place}: cannot be written ({problem.strerror})") from None

    def _begin(self, first: int) -> None:
        config, folder = self.config, self.folder
        settled = {"train": asdict(config), "version": __version__, "machine": machine(self.device)}
        settled |= {"digest": digest_of(self.options), "options": self.options}
        settled |= {"total_steps": self.total}
        before = folder.read_config()
        with self._writable():
            folder.update_config(finished=False, **settled)
            folder.write_quarantine(self.system.images.quarantined)
            self.recorder.rewind(first)
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
        for line in sharing(config, self.ranks):
            self.say(line)

    def _compile(self) -> None:
        config = self.config
        for line in self.system.compile_notes():
            self.say(line)
        if not config.compile:
            return
        lack = self.system.uncompilable or missing_compiler(self.device)
        if lack:
            self.say(f"--compile: {lack}; running eager instead")
            return
        compile_model(self.model, config.compile_scope)
        self._compiled = True
        parts = {"block": "block by block: about a minute", "step": "as a whole: some minutes"}
        self.say(
            f"compiling the networks with torch.compile, {parts[config.compile_scope]} the first "
            "time, seconds when cached"
        )

    def _first_step(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = self.recorder.restart_clock()
        if self._compiled:
            self.recorder.say(f"first step, with compilation: {seconds:.0f} s")

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


class Member(Run):
    """All processes but the first one: the same steps, and no file."""

    def _resume(self) -> int:
        return 0

    def _go_back(self, done: int) -> int:
        return 0

    def _begin(self, first: int) -> None:
        pass

    def _is_finished(self, first: int) -> int:
        return DONE

    def _stop(self, done: int, signum: int) -> int:
        return SIGNAL_EXIT + signum

    def _finish(self) -> int:
        return DONE
