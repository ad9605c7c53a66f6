"""The run folder ``<checkpoints_dir>/<name>/``: its paths, its name, and which one to continue."""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastcyclegan.errors import UserError
from fastcyclegan.files import (
    TEMPORARY_PREFIX,
    fsync_folder,
    make_folder,
    printable,
    remove_temporaries,
    write_atomic,
)
from fastcyclegan.runs.lock import Lock
from fastcyclegan.trackers import TRACKERS

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOCK = ".lock"
_NUMBER = re.compile(r"[0-9]{4,9}")
RESUME_MODES = ("auto", "none")


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. ``root`` exists; so do its sub-folders once ``open_run`` returned it.

    ``lock`` is that of the run which writes there; readers have none.
    """

    root: Path
    lock: Lock | None = field(default=None, compare=False, repr=False)

    @property
    def config(self) -> Path:
        """config.json: options, versions, machine, digests, ``finished``."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: see ``runs.metrics``."""
        return self.root / "metrics.jsonl"

    @property
    def previews(self) -> Path:
        """Folder of the preview pictures."""
        return self.root / "previews"

    @property
    def weights(self) -> Path:
        """Folder of the newest networks, for people and other programs."""
        return self.root / "weights"

    @property
    def ckpt(self) -> Path:
        """Folder of the checkpoints, for resuming."""
        return self.root / "ckpt"

    @property
    def best(self) -> Path:
        """Folder of the networks that ``--eval_every`` found best; made when there are some."""
        return self.root / "best"

    @property
    def quarantine(self) -> Path:
        """quarantine.jsonl: files passed over, with the reason."""
        return self.root / "quarantine.jsonl"

    @property
    def report(self) -> Path:
        """report.html: all of this as one page, see ``runs.report``."""
        return self.root / "report.html"

    @property
    def profile(self) -> Path:
        """Folder of the traces of ``--profile torch``; made when the first is written."""
        return self.root / "profile"

    def preview(self, step: int) -> Path:
        """The preview picture of ``step``."""
        return self.previews / f"step-{step:08d}.png"

    def all_previews(self) -> list[tuple[int, Path]]:
        """(step, picture) of every preview there is, in order."""
        named = ((path.stem.removeprefix("step-"), path) for path in self.previews.glob("*.png"))
        return sorted((int(step), path) for step, path in named if step.isdecimal())

    def tracker(self, name: str) -> Path:
        """Folder of the tracker ``name``, which makes it."""
        return self.root / name

    def repro(self, step: int) -> Path:
        """Folder of the images of ``step``, which was not finite."""
        return self.root / f"repro-step-{step:08d}"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end. Raises UserError when config.json is damaged."""
        return bool(self.read_config().get("finished"))

    def read_config(self) -> dict[str, Any]:
        """What config.json holds. Raises UserError when it is missing or damaged."""
        try:
            config = json.loads(self.config.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config} cannot be read ({_reason(error)}): give another --name"
            ) from None
        if not isinstance(config, dict):
            raise UserError(f"{self.config} is not a run's configuration: give another --name")
        return config

    def update_config(self, **values: Any) -> None:
        """Set entries of config.json, atomically; the others stay. Raises UserError, OSError."""
        self.require_ours()
        config = self.read_config() if self.config.exists() else {}
        write_atomic(self.config, (json.dumps(config | values, indent=2) + "\n").encode())

    @contextmanager
    def locked(self) -> Iterator["RunFolder"]:
        """This folder, kept from other processes. Raises UserError if one already runs here."""
        lock, shown = Lock(self.root / _LOCK), printable(self.root)
        try:
            taken = lock.take()
        except OSError as error:
            reason = f"{shown}/{_LOCK} cannot be opened ({_reason(error)})"
            raise UserError(f"{reason}: give another --name") from None
        if not taken:
            raise UserError(f"run {shown} is in use by another process: give another --name")
        try:
            yield replace(self, lock=lock)
        finally:
            lock.release()

    def remove_leftovers(self) -> None:
        """Remove what a crash left half written. For the run that has the lock."""
        places = self.root, self.previews, self.weights, self.ckpt
        remove_temporaries(*places, *self.root.glob("repro-step-*"))

    def require_ours(self) -> None:
        """Raise OSError if the run that has ``lock`` must not write here any more."""
        if self.lock:
            self.lock.require()

    def write_quarantine(self, entries: Iterable[tuple[Path, str]]) -> None:
        """Replace quarantine.jsonl by one line per (file, reason). Raises OSError."""
        self.require_ours()
        rows = ({"path": str(path), "reason": reason} for path, reason in entries)
        write_atomic(self.quarantine, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _is_held(root: Path) -> bool:
    """Whether the run ``root`` is in use, or another user's, whose lock cannot be opened."""
    lock = Lock(root / _LOCK)
    try:
        return lock.path.exists() and not lock.take()
    except OSError:
        return True
    finally:
        lock.release()


def valid_name(name: str) -> str:
    """Return ``name`` if it may name a run. Raises UserError otherwise."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise UserError(
            f"--name {name!r} cannot name a run: use 1 to 64 of the characters A-Z a-z 0-9 . _ -"
        )
    return name


def require_place(checkpoints_dir: Path) -> None:
    """Raise UserError if no folder can be made at ``checkpoints_dir``; creates nothing."""
    place = next(p for p in (checkpoints_dir, *checkpoints_dir.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"--checkpoints_dir {printable(checkpoints_dir)}: {printable(place)} is no folder that "
            "can be written; choose another"
        )


def open_run(
    checkpoints_dir: Path,
    name: str | None,
    digest: str,
    mode: str = "auto",
    options: dict[str, Any] | None = None,
    force: bool = False,
) -> RunFolder:
    """The run to write to: an existing one to continue, or a new folder.

    With a ``name``: that run, which must have the same configuration ``digest`` if it exists
    (``options`` name the differences) unless ``force`` is given; a finished one is returned
    too, see ``RunFolder.finished``. Without: the newest unfinished run of the same digest, else the
    next free number. ``mode`` "none" continues nothing: a name must then be new. A new folder gets
    a config.json of digest, options, ``finished`` false and the time of creation. Raises UserError
    when nothing can be written there, or the named run is another one.
    """
    if mode not in RESUME_MODES:
        raise UserError(f"--resume {mode} is not known: use one of {', '.join(RESUME_MODES)}")
    if name is not None:
        valid_name(name)
    try:
        make_folder(checkpoints_dir)
        if name is not None:
            run = _named_run(checkpoints_dir / name, digest, mode, options, force)
        else:
            run = _newest_unfinished(checkpoints_dir, digest) if mode == "auto" else None
            run = run or _numbered_run(checkpoints_dir)
        _refuse_links(run)
        if not run.config.exists():
            run.update_config(
                digest=digest, finished=False, created=time.time(), options=options or {}
            )
        _make_writable(run)
    except OSError as error:
        raise UserError(
            f"{error.filename or checkpoints_dir}: no run can be written there "
            f"({_reason(error)}): choose another --checkpoints_dir"
        ) from None
    return run


def _named_run(
    root: Path, digest: str, mode: str, options: dict[str, Any] | None, force: bool
) -> RunFolder:
    run = RunFolder(root)
    root.mkdir(exist_ok=True)
    if not run.config.exists():
        # what a crash left of the first writing of config.json is nobody's
        if any(not path.name.startswith(TEMPORARY_PREFIX) for path in root.iterdir()):
            raise UserError(f"{root} holds files but no config.json: give another --name")
        return run
    if mode == "none":
        raise UserError(f"run {root} exists: give another --name, or --resume auto to continue it")
    config = run.read_config()
    if config.get("digest") != digest and not force:
        differing = differences(config.get("options"), options)
        raise UserError(
            f"run {root} has another configuration ({differing}): give the same options to "
            "continue it, another --name, or --resume_force to go on with these"
        )
    return run


def differences(old: Any, new: dict[str, Any] | None) -> str:
    """What has changed between the options of a config.json and those of now, in one line."""
    old, new = (old if isinstance(old, dict) else {}), (new or {})
    # Through JSON, because a tuple comes back from config.json as a list.
    new = json.loads(json.dumps(new, default=str))
    parts = [
        "the images have changed"
        if key == "data"
        else f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return "; ".join(parts) or "digests differ"


def _newest_unfinished(checkpoints_dir: Path, digest: str) -> RunFolder | None:
    found = []
    for root in checkpoints_dir.iterdir():
        if not (root / "config.json").is_file():
            continue
        try:
            config = RunFolder(root).read_config()
        except UserError:
            continue
        unfinished = config.get("digest") == digest and config.get("finished") is False
        if unfinished and not _is_held(root):
            found.append((config.get("created", 0), root.name, root))
    return RunFolder(max(found)[2]) if found else None


def _numbered_run(checkpoints_dir: Path) -> RunFolder:
    names = [entry.name for entry in checkpoints_dir.iterdir()]
    number = max((int(name) for name in names if _NUMBER.fullmatch(name)), default=0)
    while True:
        number += 1
        root = checkpoints_dir / f"{number:04d}"
        try:
            root.mkdir()
        except FileExistsError:  # another process was quicker
            continue
        return RunFolder(root)


def _refuse_links(run: RunFolder) -> None:
    inside = [run.previews, run.weights, run.ckpt, run.best, run.metrics, run.root / _LOCK]
    inside += [
        run.profile,
        *run.ckpt.glob("step-*"),
        *run.root.glob("repro-step-*"),
        *map(run.tracker, TRACKERS),
    ]
    for path in (run.root, *inside):
        if path.is_symlink():
            raise UserError(
                f"{printable(path)} is a link: a run is written into its own folder alone; give "
                "another --name, or the place behind the link as --checkpoints_dir"
            )


def _make_writable(run: RunFolder) -> None:
    for folder in (run.previews, run.weights, run.ckpt):
        folder.mkdir(exist_ok=True)
    for folder in (run.root, run.previews, run.weights, run.ckpt):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(folder))
    fsync_folder(run.root)
    with suppress(OSError):  # see make_folder
        fsync_folder(run.root.parent)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
