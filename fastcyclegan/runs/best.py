"""``best/`` of a run: the networks that were judged best so far; ``--keep`` leaves them alone."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from torch import nn

from fastcyclegan.errors import UserError
from fastcyclegan.files import TEMPORARY_PREFIX
from fastcyclegan.models.weights import network_bytes
from fastcyclegan.runs.checkpoint import Found, found_at
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.sealed import (
    STATE,
    Damaged,
    state_bytes,
    verified_body,
    verified_files,
    write_folder,
)
from fastcyclegan.scores import SCORES


@dataclass(frozen=True)
class Standing:
    """What the best networks were judged to be.

    Attributes:
        step: optimiser steps that they had made.
        metric: the name of the score that chose them.
        score: its value.
    """

    step: int
    metric: str
    score: float

    def __str__(self) -> str:
        return f"step {self.step}, {self.metric} {self.score:.4g}"


class Best:
    """Keeps the networks of the best score, also across interruptions.

    Args:
        folder: of the run. What is in its ``best`` counts if it is sound and was chosen by the same
            metric on the same images; else the first networks that are offered take its place.
        metric: the name of the score that chooses.
        measured_on: a digest of what is judged on.

    Attributes:
        standing: of the best so far, or None.
    """

    def __init__(self, folder: RunFolder, metric: str, measured_on: str) -> None:
        self.folder, self.metric, self.measured_on = folder, metric, measured_on
        _mend(folder.best)
        state = read_best(folder) or {}
        same = (state.get("metric"), state.get("measured_on")) == (metric, measured_on)
        self.standing = _standing(state) if same else None

    def offer(
        self,
        step: int,
        score: float,
        scores: Mapping[str, float],
        networks: Mapping[str, nn.Module],
        pixel_range: str,
    ) -> bool:
        """Keep ``networks`` if their ``score`` is better than any before; whether it is.

        ``scores`` and ``step`` are written beside them. Raises OSError, on a full disk say: the
        networks of before stand.
        """
        sign = -1 if SCORES[self.metric].more_is_better else 1
        # never true of nan
        if not sign * score < (sign * self.standing.score if self.standing else inf):
            return False
        files = {
            f"{name}.safetensors": network_bytes(net, step=step, pixel_range=pixel_range)
            for name, net in networks.items()
        }
        state = {"metric": self.metric, "score": score, "scores": dict(scores), "step": step}
        state |= {"measured_on": self.measured_on}
        files[STATE] = state_bytes(step, state, files)
        try:
            write_folder(self.folder.best, files)
        finally:
            _mend(self.folder.best)
        self.standing = Standing(step, self.metric, score)
        return True


def read_best(folder: RunFolder, verify: bool = True) -> dict[str, Any] | None:
    """The state of ``best``, see :meth:`Best.offer`; None if nothing is kept, or it is damaged.

    ``verify`` reads every byte of the networks too. Raises UserError when that cannot be done.
    """
    try:
        state = verified_body(folder.best / STATE)["state"]
        if verify:
            verified_files(folder.best)
    except Damaged:
        return None
    kinds = {"step": int, "metric": str, "score": int | float}
    return state if all(isinstance(state.get(key), kinds[key]) for key in kinds) else None


def survey_best(folder: RunFolder, verify: bool = True) -> tuple[Found, str] | None:
    """``best`` as it lies on the disk, if there is one, and what it was judged to be."""
    if not folder.best.is_dir():
        return None
    state = None
    with suppress(UserError):
        state = read_best(folder, verify)
    if state is None:
        return found_at(0, folder.best, True), ""
    standing = _standing(state)
    return found_at(standing.step, folder.best, verify), str(standing)


def _standing(state: Mapping[str, Any]) -> Standing:
    return Standing(state["step"], state["metric"], state["score"])


def _mend(best: Path) -> None:
    """Undo what a crash left of a write: the folder of before, or half a new one."""
    old = best.with_name(f"{best.name}.old")
    if old.is_dir() and not best.exists():
        os.replace(old, best)
    for path in (old, *best.parent.glob(f"{TEMPORARY_PREFIX}{best.name}-*")):
        shutil.rmtree(path, ignore_errors=True)
