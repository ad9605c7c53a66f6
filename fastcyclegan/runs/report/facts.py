"""What a page says in words: options, machine, checkpoints, files passed over, how far a run is."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from time import localtime, strftime
from typing import Any

from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.runs.best import survey_best
from fastcyclegan.runs.checkpoint import Found, survey
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.report.charts import number
from fastcyclegan.runs.report.history import History, finite, shortened

MAX_CHECKPOINTS = 12
MAX_QUARANTINED = 100
_MAX_ENTRIES = 200
_MAX_SCORES = 4
_LONGEST_LINE = 1 << 16
_DEFAULTS = {item.name: item.default for item in fields(TrainConfig)}


@dataclass(frozen=True)
class Option:
    """An option of a run; ``default`` is None where the value is the default."""

    name: str
    value: str
    default: str | None


@dataclass(frozen=True)
class SavedStep:
    """Saved networks: their step, size and time as text, and why they are kept."""

    step: int
    size: str
    written: str
    kept: str


@dataclass(frozen=True)
class Quarantine:
    """Files passed over: the first of them as (path, reason), and how many there are."""

    files: list[tuple[str, str]]
    count: int
    reasons: list[tuple[str, int]]


def time_of(seconds: Any) -> str:
    """A time since 1970 as people write it, "" if it is none."""
    seconds = finite(seconds)
    if seconds is None or not 0 <= seconds < 1e11:
        return ""
    return strftime("%Y-%m-%d %H:%M", localtime(seconds))


def table(value: Any) -> dict[str, str]:
    """The entries of an object of config.json as text; none if it is no object."""
    entries = value.items() if isinstance(value, Mapping) else ()
    return {shortened(k, 60): _shown(v) for k, v in islice(entries, _MAX_ENTRIES)}


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return ("no", "yes")[value] if isinstance(value, bool) else shortened(value)


def options_of(config: Mapping[str, Any]) -> list[Option]:
    """The options of a run, those that differ from their default first."""
    found = []
    for name, value in table(config.get("train")).items():
        default = _shown(_DEFAULTS[name]) if name in _DEFAULTS else "not known here"
        found.append(Option(name, value, None if value == default else default))
    return sorted(found, key=lambda option: option.default is None)


def checkpoints_of(folder: RunFolder) -> list[SavedStep]:
    """The best networks, if there are some, and the newest checkpoints, the newest first."""
    found = survey(folder, verify=False, newest=MAX_CHECKPOINTS)
    told = [_saved(c, "for good" if c.milestone else "among the newest") for c in reversed(found)]
    # What is damaged, or being replaced at this moment, is not shown.
    with suppress(OSError, UserError, KeyError, TypeError, ValueError):
        best, standing = survey_best(folder, verify=False) or (None, "")
        if best and standing:
            told.insert(0, _saved(best, f"the best: {standing.partition(', ')[2]}"))
    return told


def _saved(found: Found, kept: str) -> SavedStep:
    size = f"{found.size / 2**20:,.1f} MiB"
    return SavedStep(found.step, size, time_of(found.modified), shortened(kept))


def quarantine_of(path: Path) -> Quarantine:
    """What quarantine.jsonl lists. Raises OSError."""
    files, count, reasons = [], 0, Counter()
    if not path.is_file():
        return Quarantine([], 0, [])
    with open(path, "rb") as file:
        while line := file.readline(_LONGEST_LINE):
            count += 1
            entry = _entry(line)
            reasons[entry[1]] += 1
            if len(reasons) > _MAX_ENTRIES:
                reasons = Counter(dict(reasons.most_common(_MAX_ENTRIES // 2)))
            if count <= MAX_QUARANTINED:
                files.append(entry)
    return Quarantine(files, count, reasons.most_common(5))


def _entry(line: bytes) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        return shortened(entry["path"]), shortened(entry["reason"], 120)
    except (ValueError, RecursionError, KeyError, TypeError):
        return "a damaged line", "not readable"


def lead_of(config: Mapping[str, Any]) -> str:
    """What is trained, in a few words."""
    train, settled = table(config.get("train")), table(config.get("options"))
    told = ["DCGAN"] if train.get("model") == "dcgan" else ["CycleGAN", train.get("netG", "")]
    if "crop_size" in train:
        told += [f"{train['crop_size']} px", f"batch {train.get('batch_size', '')}"]
    return ", ".join(filter(None, [*told, settled.get("precision", "")]))


def progress_of(config: Mapping[str, Any], history: History) -> tuple[str, float | None]:
    """How far a run is, in words and as a share of the whole, if that is known."""
    step = history.last.get("step", 0)
    total = config.get("total_steps")
    share = step / total if isinstance(total, int) and total > 0 and step <= total else None
    if config.get("finished") is True:
        return f"finished at step {step:,}", 1.0
    return f"step {step:,} of {total:,}" if share is not None else f"step {step:,}", share


def machine_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Where and with what a run was made; empty entries are left out."""
    told = {"fastcyclegan": shortened(config.get("version", ""))} | table(config.get("machine"))
    told["begun"] = time_of(config.get("created"))
    return {name: value for name, value in told.items() if value}


def tiles_of(config: Mapping[str, Any], history: History) -> list[tuple[str, str]]:
    """The numbers at the head of a page: (what, value)."""
    last, found = history.last, []
    for name in ("epoch", "images"):
        if type(last.get(name)) is int:
            found.append((name, f"{last[name]:,}"))
    for name, title, unit in (("img_per_s", "speed", " img/s"), ("lr_G", "learning rate", "")):
        value = history.train[name].last if name in history.train else None
        if value is not None:
            found.append((title, number(value) + unit))
    evals = [(name, number(curve.last)) for name, curve in history.evals.items()]
    left = _time_left(config, history)
    return [*found, *([("to go, about", left)] if left else []), *evals[:_MAX_SCORES]]


def _time_left(config: Mapping[str, Any], history: History) -> str:
    """At the speed of the last points, "" where that is unknown or nothing is left."""
    total, train = finite(config.get("total_steps")), config.get("train")
    batch = finite(train.get("batch_size")) if isinstance(train, Mapping) else None
    points = history.train["img_per_s"].points[-20:] if "img_per_s" in history.train else []
    speeds = [p.mean for p in points if p.mean]
    steps = (total or 0) - history.last.get("step", 0)
    if config.get("finished") is True or steps <= 0 or not batch or not speeds:
        return ""
    minutes = steps * batch / (sum(speeds) / len(speeds)) / 60
    if minutes < 90:
        return f"{max(minutes, 1):.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 2880 else f"{minutes / 1440:,.1f} days"
