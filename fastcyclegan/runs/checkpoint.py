"""Checkpoints: ``ckpt/step-%08d/`` appears whole or not at all, and is verified when read.

Each holds one safetensors file per network, train_state.safetensors and state.json, which lists the
CRC32 and size of every other file and has a CRC32 of its own.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastcyclegan.errors import UserError
from fastcyclegan.files import fsync_file, fsync_folder, remove_temporaries, write_atomic
from fastcyclegan.models.weights import copies, copies_to_bytes, network_tensors, tensors_from_bytes
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.sealed import (
    STATE,
    Damaged,
    state_bytes,
    verified_body,
    verified_files,
    write_folder,
)

_TRAIN_STATE = "train_state"
_SUFFIX = ".safetensors"
# ".old": moved aside while another checkpoint of the same step takes its place.
_NAME = re.compile(r"step-([0-9]{8,})(\.old)?")


class StaleWeights(OSError):
    """The checkpoint stands, but weights/ could not be brought to it."""


@dataclass(frozen=True)
class Snapshot:
    """A run as it was after ``step`` optimiser steps, apart from the run itself.

    Attributes:
        step: optimiser steps.
        files: (tensors on the CPU, metadata) of each safetensors file, by its stem.
        state: what JSON can hold.
        milestone: whether the checkpoint is kept for good.
    """

    step: int
    files: Mapping[str, tuple[dict[str, Tensor], dict[str, str]]]
    state: Mapping[str, Any]
    milestone: bool = False


def take_snapshot(
    step: int,
    networks: Mapping[str, nn.Module],
    train_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    milestone: bool = False,
    pixel_range: str = "tanh",
) -> Snapshot:
    """Copy what a checkpoint holds.

    Args:
        networks: by name (G_A …).
        train_state: tensors by name, of any dtype and layout (an optimiser's moments by parameter
            name).
        state: what JSON can hold; the step number is added by the checkpoint itself.
    """
    files = {
        name: network_tensors(net, step=step, pixel_range=pixel_range)
        for name, net in networks.items()
    }
    files[_TRAIN_STATE] = dict(train_state), {"step": str(step)}
    copied = {name: (copies(tensors), metadata) for name, (tensors, metadata) in files.items()}
    return Snapshot(step, copied, json.loads(json.dumps(dict(state))), milestone)


def save_checkpoint(
    folder: RunFolder,
    step: int,
    networks: Mapping[str, nn.Module],
    train_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 3,
    pixel_range: str = "tanh",
) -> Path:
    """:func:`take_snapshot`, then :func:`write_checkpoint`."""
    snapshot = take_snapshot(step, networks, train_state, state, pixel_range=pixel_range)
    return write_checkpoint(folder, snapshot, keep)


def write_checkpoint(folder: RunFolder, snapshot: Snapshot, keep: int = 3) -> Path:
    """Save ``snapshot`` and return the checkpoint's folder.

    Then the ``keep`` newest checkpoints up to its step and all milestones stay, those of later
    steps go (the run has left that future), and weights/ is refreshed. Raises OSError, a full disk
    say: the previous checkpoints still stand; StaleWeights: the new one does too.
    """
    if keep < 1:
        raise ValueError("keep must be at least 1")
    folder.require_ours()
    remove_temporaries(folder.ckpt, folder.weights)
    files = {name + _SUFFIX: copies_to_bytes(*content) for name, content in snapshot.files.items()}
    weights = {name: data for name, data in files.items() if name != _TRAIN_STATE + _SUFFIX}
    files[STATE] = state_bytes(snapshot.step, snapshot.state, files, snapshot.milestone)
    path = folder.ckpt / f"step-{snapshot.step:08d}"
    with suppress(OSError):  # the rows up to this step are not to be lost behind the checkpoint
        fsync_file(folder.metrics)
        fsync_folder(folder.root)
    write_folder(path, files)
    _prune(folder, snapshot.step, keep)
    for name, data in weights.items():
        _write_weights(folder.weights / name, data)
    return path


def refresh_weights(folder: RunFolder, step: int, path: Path) -> None:
    """Bring weights/ to ``step``, whose checkpoint is ``path``, where a crash came in between.

    Raises StaleWeights, OSError.
    """
    folder.require_ours()
    for source in path.glob("*" + _SUFFIX):
        target = folder.weights / source.name
        if source.stem != _TRAIN_STATE and _step_of(target) != step:
            _write_weights(target, source.read_bytes())


def _write_weights(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise StaleWeights(error.errno, error.strerror, str(path)) from error


def _step_of(path: Path) -> int | None:
    """The step of a weights file, or None if it is not there or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def latest_checkpoint(
    folder: RunFolder, on_damaged: Callable[[Path, str], None] | None = None
) -> tuple[int, Path] | None:
    """(step, folder) of the newest checkpoint that verifies, or None when there is none.

    ``on_damaged(path, message)`` is called for each newer one that had to be passed over. Raises
    UserError for one that may be sound, but cannot be read, or by another version only: to go on
    from an older one would be to lose it.
    """
    try:
        found = _checkpoints(folder)
    except OSError as error:
        raise UserError(f"{folder.ckpt} cannot be read ({error.strerror})") from None
    for step, path in reversed(found):
        try:
            _verify(path)
        except Damaged as error:
            if on_damaged:
                on_damaged(path, str(error))
        except UserError as error:
            raise UserError(f"{error}; move {path} away to go on from an older one") from None
        else:
            return step, path
    return None


@dataclass(frozen=True)
class Found:
    """A checkpoint as it lies on the disk.

    Attributes:
        step, path: which one.
        size: bytes.
        modified: when it was written, seconds since 1970.
        milestone: whether it is kept for good.
        damage: what is wrong with it, "" if nothing is, None if that was not asked.
        unknown: whether it may be sound all the same: it cannot be read, or by another version.
    """

    step: int
    path: Path
    size: int
    modified: float
    milestone: bool
    damage: str | None
    unknown: bool = False


def survey(folder: RunFolder, verify: bool = True, newest: int | None = None) -> list[Found]:
    """Checkpoints of a run, all or the ``newest`` ones, oldest first; ``verify`` reads every byte.

    One that is removed meanwhile is left out. Raises OSError.
    """
    found = []
    for step, path in _checkpoints(folder)[-newest if newest else None :]:
        with suppress(FileNotFoundError):
            found.append(found_at(step, path, verify))
    return found


def found_at(step: int, path: Path, verify: bool) -> Found:
    """The checkpoint ``path``; ``verify`` reads every byte of it. Raises OSError."""
    damage, milestone, unknown = None, False, False
    try:
        milestone = is_milestone(path)
        if verify:
            _verify(path)
            damage = ""
    except UserError as error:
        damage, unknown = str(error), not isinstance(error, Damaged)
    size = sum(file.stat().st_size for file in path.glob("*") if file.is_file())
    return Found(step, path, size, path.stat().st_mtime, milestone, damage, unknown)


def remove(path: Path) -> None:
    """Remove the checkpoint ``path``; one that is cut short by a crash does not look sound.

    Raises OSError.
    """
    if path.is_symlink():  # to the checkpoint of another run, say
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    (path / STATE).unlink(missing_ok=True)
    shutil.rmtree(path)


def load_checkpoint(
    path: Path,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Any]]:
    """(state dict of each network, train_state, state) of a checkpoint; tensors contiguous, CPU.

    Raises UserError, naming the file, when anything is missing or differs from what was saved.
    """
    files, state = _verify(Path(path))
    tensors = {}
    for name, data in files.items():
        try:
            tensors[name.removesuffix(_SUFFIX)], _ = tensors_from_bytes(data)
        except ValueError as error:
            raise UserError(f"{path}/{name} is damaged: {error}") from None
    return tensors, tensors.pop(_TRAIN_STATE), state


def _checkpoints(folder: RunFolder) -> list[tuple[int, Path]]:
    """(step, folder) of everything named like a checkpoint, oldest first."""
    if not folder.ckpt.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.ckpt.iterdir()]
    found = [(int(match[1]), not match[2], path) for match, path in named if match]
    return [(step, path) for step, _, path in sorted(found)]


def _verify(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """As :func:`verified_files`; that ``path`` is named as what it is, too."""
    body, match = verified_body(path / STATE), _NAME.fullmatch(path.name)
    if match and int(match[1]) != body["step"]:
        raise Damaged(f"{path}/{STATE} is damaged: it is of step {body['step']}")
    return verified_files(path)


def _prune(folder: RunFolder, step: int, keep: int) -> None:
    found = _checkpoints(folder)
    current = [path for at, path in found if at <= step and path.suffix != ".old"]
    for _, path in found:
        with suppress(OSError, UserError):  # what cannot be read may be sound, and stays
            milestone = is_milestone(path) and path in current
            if not milestone and path not in current[-keep:]:
                remove(path)


def is_milestone(path: Path) -> bool:
    """Whether the checkpoint ``path`` is one that is kept for good; what is damaged is not.

    Raises UserError when that cannot be told.
    """
    try:
        return bool(verified_body(path / STATE).get("milestone"))
    except Damaged:
        return False
