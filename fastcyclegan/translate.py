"""python -m fastcyclegan.translate: put images through a trained generator.

An image of any size gives one of the same size. torch is imported only after the options are read.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from fastcyclegan import command
from fastcyclegan.config import TranslateConfig
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.options import parse

if TYPE_CHECKING:
    import numpy as np
    import torch

# The ResNet generator halves the size twice, and its innermost reflection needs some pixels.
SMALLEST = 16
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
    net = _load(config)
    if source.is_dir():
        return _translate_folder(net, source, output, config)
    target = _target(source, config.output)
    _refuse_inputs([target], [source])
    if target.exists() and not config.overwrite:
        raise UserError(f"--output {printable(target)} exists: --overwrite replaces it")
    for problem in _translate_files(net, [source], [target], config.alpha):
        raise UserError(problem)
    print(f"wrote {printable(target)}")
    return command.DONE


def translate(net: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Put one image, uint8 (H, W, input_nc) of any size, through ``net``.

    Returns uint8 (H, W, output_nc), rounded to nearest. Where the size is no multiple of what the
    network asks for (4 for a ResNet), or very small, the image is continued by its reflection at
    the right and at the bottom, and cut again.
    """
    import numpy as np
    import torch

    from fastcyclegan.data.images import from_uint8, to_uint8

    height, width, _ = image.shape
    margins = (*((0, _margin(side, net.multiple)) for side in (height, width)), (0, 0))
    padded = np.pad(image, margins, mode="reflect")  # repeats the edge where a side is 1 pixel
    with torch.inference_mode():
        device = next(net.parameters()).device
        real = from_uint8(torch.from_numpy(padded)[None].to(device))
        fake = to_uint8(net(real))[0].cpu().numpy()
    return fake[:height, :width]


def output_names(names: Sequence[PurePath]) -> list[PurePath]:
    """The output's relative path for each input's: ``a/b.jpg`` gives ``a/b.png``.

    Inputs that differ in nothing but the suffix (or in upper and lower case) keep theirs, as in
    ``b.jpg.png``; no two outputs have the same name.
    """

    def key(path: PurePath) -> str:
        return str(path).casefold()

    plain = [name.with_suffix(".png") for name in names]
    wanted = Counter(map(key, plain))
    taken = {key(path) for path in plain if wanted[key(path)] == 1}
    chosen = []
    for name, path in zip(names, plain, strict=True):
        if wanted[key(path)] > 1:
            path = name.with_name(name.name + ".png")
            while key(path) in taken:
                path = path.with_name(path.stem + "_.png")
            taken.add(key(path))
        chosen.append(path)
    return chosen


def _margin(size: int, multiple: int) -> int:
    return max(SMALLEST, -(-size // multiple) * multiple) - size


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


def _load(config: TranslateConfig) -> torch.nn.Module:
    weights = Path(config.weights)
    if config.direction and weights.is_file():
        name = printable(weights)
        raise UserError(f"--direction chooses from a run folder; {name} is one file: leave it out")
    from fastcyclegan.device import resolve_device, resolve_precision
    from fastcyclegan.models.weights import open_generator
    from fastcyclegan.steps.compilation import require_kernels

    device = resolve_device(config.device)
    require_kernels(device, "--device cpu")
    resolve_precision("fp32", device)
    net, metadata = open_generator(weights, config.direction or "AtoB", device)
    for name in ("input_nc", "output_nc"):
        if net.arch[name] not in CHANNELS:
            raise UserError(
                f"{printable(weights)} has {name} {net.arch[name]}, but image files have 1, 3 or 4 "
                "channels: use fastcyclegan.load_generator from Python"
            )
    if metadata["format"] == "pth":
        guesses = {"pixel_range": metadata["pixel_range"], **metadata["assumed"]}
        told = ", ".join(f"{name} {value}" for name, value in guesses.items())
        print(f"{printable(weights)}: {net.title}; it does not tell, and assumed is {told}")
    return net


def _target(source: Path, output: str) -> Path:
    target = Path(output)
    if target.is_dir() or output.endswith(os.sep):
        return target / output_names([PurePath(source.name)])[0]
    if not target.suffix:
        raise UserError(f"--output {printable(target)}: give it a suffix such as .png, or a folder")
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
    net: torch.nn.Module, source: Path, output: Path, config: TranslateConfig
) -> int:
    from fastcyclegan.data.scan import scan_folder

    scan = scan_folder(source, min_size=1)
    names = output_names([path.relative_to(source) for path in scan.files])
    targets = [output / name for name in names]
    _refuse_inputs(targets, scan.files)
    _refuse_outside(targets, output)
    todo = [
        pair
        for pair in zip(scan.files, targets, strict=True)
        if config.overwrite or not pair[1].exists()
    ]
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} images exist already: --overwrite replaces them")
    files, targets = ([pair[i] for pair in todo] for i in (0, 1))
    bad = 0
    unusable = (f"{printable(path)}: {reason}" for path, reason in scan.quarantined)
    for problem in chain(unusable, _translate_files(net, files, targets, config.alpha)):
        print(problem, file=sys.stderr)
        bad += 1
    total = len(files) + len(scan.quarantined)
    if total and bad == total:
        raise UserError(f"none of the {total} images in {printable(source)} could be read")
    print(f"wrote {total - bad} of {total} images to {printable(output)}")
    return command.DONE


def _translate_files(
    net: torch.nn.Module, sources: Sequence[Path], targets: Sequence[Path], alpha: str
) -> Iterator[str]:
    """Write each source's translation to its target; yield a line for each unreadable source."""
    from fastcyclegan.data.images import BadImage, pillow_warnings, write_image

    for source, target in zip(sources, targets, strict=True):
        try:
            with pillow_warnings():
                image = _read(source, net.arch["input_nc"], alpha)
        except BadImage as problem:
            yield f"{printable(source)}: {problem}"
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            name = printable(target.parent)
            raise UserError(f"--output {name} cannot be made: {problem.strerror}") from None
        write_image(target, translate(net, image))


def _read(source: Path, channels: int, alpha: str) -> np.ndarray:
    """The image as the generator takes it. Raises BadImage, also for colour where it takes grey."""
    from fastcyclegan.data.images import BadImage, read_image

    if channels != 1:
        return read_image(source, channels, alpha)
    image = read_image(source, 3, alpha)
    if (image != image[..., :1]).any():
        raise BadImage("is in colour, and the generator takes grey: convert it first")
    return image[..., :1]


if __name__ == "__main__":
    sys.exit(command.run(main))
