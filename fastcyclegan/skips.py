"""Steps that were not finite: named, stored, and one way back when they do not end."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.files import write_atomic
from fastcyclegan.models.weights import network_bytes, tensors_to_bytes
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.steps.gate import Skipped
from fastcyclegan.systems import System
from fastcyclegan.version import __version__

# A repro of photographs takes megabytes, one with the networks a hundred.
REPROS = 16
NAMED = 4


class Skips:
    """Reads the gate of a training at ticks, and knows which images each step is given.

    Args:
        config: the options.
        folder: of the run; repros are stored there.
        system: what is trained.

    Attributes:
        offset: steps by which the stream of images is ahead of the steps.
        in_a_row: steps skipped in a row, at the last reading.
        spoilt: whether weights or losses were found that the gate should have kept away.
        unstored: why the last repro could not be stored, or None.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, system: System) -> None:
        self.config, self.folder, self.system = config, folder, system
        self.offset, self.in_a_row, self.spoilt = 0, 0, False
        self.unstored: str | None = None
        self._went_back_to: int | None = None

    @property
    def too_many(self) -> bool:
        """Whether the training must not go on from here."""
        return self.spoilt or self.in_a_row >= self.config.max_skips

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """The images of ``step``, in one of several processes its own."""
        return self.system.sampler.batch(step + self.offset)

    def look(self) -> Skipped:
        """What was skipped since the last reading; one host sync."""
        found = self.system.model.gate.read()
        self.in_a_row = found.in_a_row
        return found

    def read(self, done: int) -> Iterator[dict[str, Any]]:
        """Events of what was skipped since the last reading, of ``done`` steps; one host sync."""
        found = self.look()
        steps = [number // self.config.batch_size for number in found.numbers]
        for step in steps:
            event = {"step": step + 1, "event": "skipped", "names": self._names(step)}
            if step in (steps[0], steps[-1]):
                last = step == steps[-1] and len(steps) == found.count
                event["repro"] = self._store(step, exact=last and found.in_a_row > 0)
            yield event
        if found.count > len(steps):
            yield {"step": done, "event": "skipped", "unlisted": found.count - len(steps)}

    def hopeless(self, done: int, step: int) -> bool:
        """Whether going back from ``done`` steps to the checkpoint of ``step`` was tried in vain.

        It was if nothing has been saved since the last time, or if no step has been finite.
        """
        tried = self._went_back_to
        return tried is not None and (step <= tried or self.in_a_row >= done - tried)

    def go_back(self, step: int) -> None:
        """Take other images from ``step`` on, whose state has been loaded."""
        self._went_back_to = step
        # Whole epochs further, so that an epoch still has each of its images once.
        self.offset += self.system.sampler.epoch_length
        self.in_a_row, self.spoilt = 0, False
        self.system.model.gate.load(0)

    def told(self, done: int) -> str:
        """Why the training must not go on after ``done`` steps, in a few words."""
        what = "weights" if self.spoilt else f"{self.in_a_row} steps in a row"
        first = self.culprits()[:NAMED]
        return f"{what} up to step {done} were not finite" + (
            f" (first of all {', '.join(first)})" if first else ""
        )

    def culprits(self) -> list[str]:
        """Names of weights that are not finite or, if all are, of gradients of the last step."""
        named = [
            (f"{name}/{key}", p)
            for name, net in self.system.model.networks.items()
            for key, p in net.live_parameters()
        ]
        weights = [name for name, p in named if not torch.isfinite(p).all()]
        return weights or [
            f"gradient of {name}"
            for name, p in named
            if p.grad is not None and not torch.isfinite(p.grad).all()
        ]

    def state(self) -> dict[str, int | None]:
        """What a resumed run needs, as JSON can hold it."""
        return {
            "in_a_row": self.in_a_row,
            "offset": self.offset,
            "went_back_to": self._went_back_to,
        }

    def load(self, state: dict[str, int | None]) -> None:
        """Put back what :meth:`state` returned. Raises KeyError."""
        self.in_a_row, self.offset, self.spoilt = state["in_a_row"], state["offset"], False
        self._went_back_to = state.get("went_back_to")  # older checkpoints have none
        self.system.model.gate.load(self.in_a_row)

    def _names(self, step: int) -> dict[str, list[str]]:
        return self.system.image_names(step + self.offset)

    def _store(self, step: int, exact: bool) -> str | None:
        """Store the images of ``step``, and the networks where they are still those it had."""
        place = self.folder.repro(step)
        if len(list(self.folder.root.glob("repro-step-*"))) >= REPROS:
            return None
        about = {
            "version": __version__,
            "step": step,
            "offset": self.offset,
            "names": self._names(step),
            "networks_of_this_step": exact,
            "not_finite": self.culprits() if exact else None,
            "train": asdict(self.config),
        }
        batch = self.system.sampler.batch(step + self.offset, whole=True)
        images = dict(zip(about["names"], batch, strict=True))
        files = {"images.safetensors": tensors_to_bytes(images, {"step": str(step)})}
        if exact:
            networks, pixels = self.system.model.networks, self.config.pixel_range
            files |= {
                f"{name}.safetensors": network_bytes(net, step=step, pixel_range=pixels)
                for name, net in networks.items()
            }
        files["repro.json"] = (json.dumps(about, indent=2) + "\n").encode()
        try:
            self.folder.require_ours()
            place.mkdir(exist_ok=True)
            for name, data in files.items():
                write_atomic(place / name, data)
        except OSError as problem:
            self.unstored = f"{place}: {problem.strerror}"
            return None
        return place.name


def in_vain(problem: str, last: Path | None) -> str:
    """One line about ``problem``, which going back did not help or could not; ``last`` stands."""
    if last:
        stands = f" again, with other images, and nothing of it was saved: {last} stands"
    else:
        stands = ", and there is no checkpoint yet"
    return f"{problem}{stands}; try a lower --lr or --precision fp32"


def told(events: list[dict[str, Any]]) -> str:
    """One line about the events of one reading."""
    count = sum(event.get("unlisted", 1) for event in events)
    last = next(event for event in reversed(events) if "names" in event)
    steps = "1 step was" if count == 1 else f"{count} steps were"
    images = "; ".join(
        f"{domain} " + ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        for domain, names in last["names"].items()
    )
    line = f"{steps} not finite and changed nothing, the last one step {last['step']} ({images})"
    return f"{line}: {last['repro']}" if last.get("repro") else line
