"""Part train: horse2zebra on the paper's recipe, its schedule fitted into the time there is."""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from bench import plots
from bench.gpu_suite.cases import Case, Plan, Result
from bench.gpu_suite.processes import PREVIEWS, run_training
from fastcyclegan.errors import UserError
from fastcyclegan.runs.metrics import read_metrics

VARIABLE = "FASTCYCLEGAN_DATA"
NAME = "horse2zebra"
# Of the budget, what is left for starting, saving and drawing, and the steps that show the speed.
SPARE, TRIAL = 45.0, 150
POINTS = 200
TINY = ["--device", "cpu", "--preset", "small", "--netG", "resnet_1blocks"]
TINY += ["--ngf", "4", "--print_freq", "2"]
TINY_STEPS = 12


def images() -> Path | None:
    """Those to train on, if any are named. Raises UserError for a folder without them."""
    root = os.environ.get(VARIABLE)
    if root and not Path(root, NAME, "trainA").is_dir():
        raise UserError(f"{VARIABLE} {root}: there is no {NAME}/trainA in it; name another folder")
    return Path(root, NAME).resolve() if root else None


def cases(plan: Plan) -> Sequence[Case]:
    """One training, where there are images."""
    if plan.rehearse:
        return [Case("toy images", partial(train, plan, None), 5)]
    data = images()
    if data is None:
        return []
    seconds = min(120.0, plan.budget)
    return [Case(NAME, partial(train, plan, data), seconds, limit=plan.budget)]


def train(plan: Plan, data: Path | None) -> Result:
    """Measure the speed, train for as long as that leaves time, and draw what came of it."""
    start = time.monotonic()
    recipe = ["--preset", "paper", "--dataroot", str(data), "--compile"] if data else TINY
    with tempfile.TemporaryDirectory() as folder:
        steps, begun = TINY_STEPS, 0.0
        if data:
            run = run_training(recipe, TRIAL, Path(folder, "trial"), 240)
            begun = time.monotonic() - start - TRIAL / _speed(run)
            # The training compiles anew, out of a cache: at most what the trial has taken for it.
            left = plan.budget - SPARE - (time.monotonic() - start) - begun
            steps = max(TRIAL, round(left * _speed(run)))
        limit = plan.budget - (time.monotonic() - start) - SPARE / 3
        root = run_training(recipe, steps, Path(folder, "train"), limit)
        result = _figures(root) | {"asked_steps": steps, "recipe": " ".join(recipe[:2])}
        result["seconds_to_begin"] = round(begun, 1)
        _draw(root, result, plan.out)
    return result


def _ticks(root: Path) -> list[dict]:
    rows = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "train"]
    if not rows:
        raise RuntimeError("the training came to no line of losses")
    return rows


def _speed(root: Path) -> float:
    """Steps per second of batch 1: the median of the later half of the ticks."""
    rows = _ticks(root)
    return statistics.median(row["img_per_s"] or 0.0 for row in rows[len(rows) // 2 :])


def _figures(root: Path) -> Result:
    rows = _ticks(root)
    names = [name for name in rows[0] if re.fullmatch(r"(D|G|cycle|idt)_[AB]", name)]
    every = max(1, -(-len(rows) // POINTS))
    kept = [*rows[::every], *rows[-1:]]
    losses = {name: [_rounded(row[name]) for row in kept] for name in names}
    result: Result = {"steps": rows[-1]["step"], "epochs": rows[-1]["epoch"]}
    result |= {"img_per_s": round(_speed(root), 2), "seen_at": [row["step"] for row in kept]}
    return result | {"losses": losses}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _draw(root: Path, result: Result, out: Path) -> None:
    """train.png the losses, train-samples.png the last fixed test images, train-course.png all."""
    pictures = sorted((root / "previews").glob("*.png"))
    if pictures:
        with Image.open(pictures[-1]) as last:
            last.convert("RGB").save(out / "train-samples.png", optimize=True)
        _course(pictures, out / "train-course.png")
    try:
        plots.curves(result["seen_at"], result["losses"], "optimiser steps", out / "train.png")
    except UserError as problem:
        result["not_drawn"] = str(problem)


def _course(paths: Sequence[Path], out: Path) -> None:
    """The previews side by side, from the first to the last, at half their size."""
    images = []
    for path in paths[-PREVIEWS:]:
        with Image.open(path) as image:
            images.append(image.convert("RGB").reduce(2))
    width, height = sum(x.width for x in images), max(x.height for x in images)
    course, left = Image.new("RGB", (width, height)), 0
    for image in images:
        course.paste(image, (left, 0))
        left += image.width
    course.save(out, optimize=True)


def lines(results: Mapping[str, Result]) -> list[str]:
    """Steps, speed, and the losses at the beginning and at the end."""
    if not results:
        return [f"no training: {VARIABLE} names no images"]
    told = []
    for name, r in results.items():
        told.append(
            f"{name}: {r['steps']} of {r['asked_steps']} steps, {r['epochs']} epochs, "
            f"{r['img_per_s']} steps/s, {r['seconds_to_begin']} s until they begin"
        )
        ends = (f"{loss} {ys[0]} to {ys[-1]}" for loss, ys in r["losses"].items())
        told.append(f"    {', '.join(ends)}")
    return told
