"""python -m fastcyclegan.translate: put images through a trained generator.

An image of any size gives one of the same size. torch is imported only after the options are read.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from fastcyclegan import command
from fastcyclegan.config import TranslateConfig
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.options import parse

if TYPE_CHECKING:
    from fastcyclegan.models import Network
    from fastcyclegan.translation import Job, Speed, Translator

# grey, RGB, RGBA
CHANNELS = (1, 3, 4)


def main(argv: Sequence[str]) -> int:
    """Run the command with the words ``argv`` and return its exit code. Raises UserError."""
    config = parse(
        TranslateConfig,
        "python -m fastcyclegan.translate",
        "Translate an image, or a folder of images, with a trained generator.",
        argv,
    )
    source, output = Path(config.input), Path(config.output)
    _check_places(source, output)
    translator = _load(config)
    if source.is_dir():
        return _translate_folder(translator, source, output, config)
    target = _target(source, config)
    _refuse_inputs([target], [source])
    if target.exists() and not config.overwrite:
        raise UserError(f"--output {printable(target)} exists: --overwrite replaces it")
    from fastcyclegan.translation import Job, translate_files

    for job, problem in translate_files(translator, [Job(source, target)], config):
        if problem:
            raise UserError(f"{printable(job.source)}: {problem}")
    print(f"wrote {printable(target)}")
    return command.DONE


def output_names(names: Sequence[PurePath], suffix: str = ".png") -> list[PurePath]:
    """The output's relative path for each input's: ``a/b.jpg`` gives ``a/b.png``.

    Inputs that differ in nothing but the suffix (or in upper and lower case) keep theirs, as in
    ``b.jpg.png``; no two outputs have the same name.
    """

    def key(path: PurePath) -> str:
        return str(path).casefold()

    plain = [name.with_suffix(suffix) for name in names]
    wanted = Counter(map(key, plain))
    taken = {key(path) for path in plain if wanted[key(path)] == 1}
    chosen = []
    for name, path in zip(names, plain, strict=True):
        if wanted[key(path)] > 1:
            path = name.with_name(name.name + suffix)
            while key(path) in taken:
                path = path.with_name(path.stem + "_" + suffix)
            taken.add(key(path))
        chosen.append(path)
    return chosen


def _check_places(source: Path, output: Path) -> None:
    if not source.exists():
        raise UserError(f"--input {printable(source)} does not exist: give an image or a folder")
    if not source.is_dir():
        return
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {printable(output)} is a file, --input a folder: give a folder")
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"--output {printable(output)} is in --input {printable(source)}: give another"
        )


def _load(config: TranslateConfig) -> Translator:
    weights = Path(config.weights)
    if config.direction and weights.is_file():
        name = printable(weights)
        raise UserError(f"--direction chooses from a run folder; {name} is one file: leave it out")
    from fastcyclegan.device import resolve_device, resolve_precision
    from fastcyclegan.models.weights import open_generator, told_assumptions
    from fastcyclegan.steps.compilation import require_kernels
    from fastcyclegan.translation import Translator

    device = resolve_device(config.device)
    require_kernels(device, "--device cpu")
    wanted = config.precision
    if wanted == "auto" and device.type == "cpu":
        wanted = "fp32"
    precision = resolve_precision(wanted, device)
    net, metadata = open_generator(weights, config.direction or "AtoB", device, config.pixel_range)
    _check_channels(weights, net)
    if told := told_assumptions(weights, net, metadata):
        print(told)
    return Translator(net, precision.dtype, config.tile, print)


def _check_channels(weights: Path, net: Network) -> None:
    for name in ("input_nc", "output_nc"):
        channels = net.arch.get(name)
        if channels is None:
            raise UserError(
                f"{printable(weights)} makes images from noise: use python -m fastcyclegan.sample"
            )
        if channels not in CHANNELS:
            raise UserError(
                f"{printable(weights)} has {name} {channels}, but image files have 1, 3 or 4 "
                "channels: use fastcyclegan.load_generator from Python"
            )


def _target(source: Path, config: TranslateConfig) -> Path:
    from fastcyclegan.data.photos import check_target

    target = Path(config.output)
    if target.is_dir() or config.output.endswith(os.sep):
        return target / output_names([PurePath(source.name)], f".{config.format}")[0]
    if not target.suffix:
        raise UserError(f"--output {printable(target)}: give it a suffix such as .png, or a folder")
    check_target(target)
    return target


def _refuse_inputs(targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Raise UserError where writing a target would replace a source, by way of links too."""
    inputs = {path.resolve() for path in sources}
    for target in targets:
        if target.resolve() in inputs:
            raise UserError(
                f"--output would replace the input {printable(target)}: write elsewhere"
            )


def _refuse_outside(targets: Sequence[Path], output: Path) -> None:
    """Raise UserError where a target would be written outside of ``output``, by way of a link."""
    inside = output.resolve()
    for target in targets:
        if not target.parent.resolve().is_relative_to(inside):
            raise UserError(
                f"--output {printable(target.parent)} leads out of {printable(output)} by a link: "
                "remove the link, or write elsewhere"
            )


def _translate_folder(
    translator: Translator, source: Path, output: Path, config: TranslateConfig
) -> int:
    from fastcyclegan.data.scan import scan_folder
    from fastcyclegan.translation import Job, Speed, in_order_of_numbers

    scan = scan_folder(source, min_size=1)
    names = output_names([path.relative_to(source) for path in scan.files], f".{config.format}")
    jobs = [
        Job(path, output / name, height * width)
        for path, name, (height, width) in zip(scan.files, names, scan.sizes, strict=True)
    ]
    targets = [job.target for job in jobs]
    _refuse_inputs(targets, scan.files)
    _refuse_outside(targets, output)
    todo = [job for job in jobs if config.overwrite or not job.target.exists()]
    todo.sort(key=lambda job: in_order_of_numbers(job.source))
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} images exist already: --overwrite replaces them")
    for path, reason in scan.quarantined:
        print(f"{printable(path)}: {reason}", file=sys.stderr)
    speed = Speed()
    bad = len(scan.quarantined) + _follow(translator, todo, config, speed)
    total = len(todo) + len(scan.quarantined)
    if total and bad == total and len(todo) == len(jobs):
        raise UserError(f"none of the {total} images in {printable(source)} could be read")
    pace = f", {speed.img_per_s:.1f} img/s" if todo else ""
    print(f"wrote {total - bad} of {total} images to {printable(output)}{pace}")
    return command.DONE


def _follow(
    translator: Translator, jobs: Sequence[Job], config: TranslateConfig, speed: Speed
) -> int:
    """Do ``jobs`` and show how far they are; returns how many could not be read."""
    from fastcyclegan.runs.progress import Progress
    from fastcyclegan.runs.terminal import terminal
    from fastcyclegan.translation import translate_files

    bad = 0
    with terminal(sys.stdout) as console, Progress(len(jobs), 0, console, "image") as progress:
        for done, (job, problem) in enumerate(translate_files(translator, jobs, config), 1):
            if problem:
                print(f"{printable(job.source)}: {problem}", file=sys.stderr)
                bad += 1
            if speed.count() or console.is_terminal:
                progress.tick(done, {}, speed.img_per_s)
    return bad


if __name__ == "__main__":
    sys.exit(command.run(main))
