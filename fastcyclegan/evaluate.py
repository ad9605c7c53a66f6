"""python -m fastcyclegan.evaluate: how near images are to real ones, or to what they should be.

The images of a folder, or those that a trained generator makes. torch is imported only after the
options are read.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastcyclegan import command
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.options import parse
from fastcyclegan.scores import SCORES, EvaluateConfig

if TYPE_CHECKING:
    import torch

    from fastcyclegan.data.scan import Scan
    from fastcyclegan.models import Network
    from fastcyclegan.runs.evaluation import PairScores
    from fastcyclegan.runs.features import Extractor

# Pixels of images that are in memory at once, and images that a translator is given.
PIXELS, BATCH = 2**22, 8


def main(argv: Sequence[str]) -> int:
    """Run the command with the words ``argv`` and return its exit code. Raises UserError."""
    config = parse(
        EvaluateConfig,
        "python -m fastcyclegan.evaluate",
        "Score images: FID, KID, sliced Wasserstein distance; PSNR, SSIM, L1 beside the truth.",
        argv,
    )
    _check(config)
    result = _evaluate(config)
    if config.json:
        scores = {name: x if isfinite(x) else None for name, x in result["scores"].items()}
        print(json.dumps(result | {"scores": scores}, indent=1))
    else:
        for line in _lines(result):
            print(line)
    return command.DONE


def _check(config: EvaluateConfig) -> None:
    if (config.fake is None) == (config.weights is None):
        raise UserError("give the images to judge: either --fake FOLDER, or --weights")
    if config.real is None and config.truth is None:
        raise UserError("give --real FOLDER, --truth FOLDER or both: what to compare with")
    if config.features and config.real is None:
        raise UserError("--features is for fid and kid, which need --real FOLDER")
    if config.architecture and not config.features:
        raise UserError("--architecture needs --features: the file of its weights")
    for name in ("input", "direction", "pixel_range", "num"):
        if getattr(config, name) is not None and config.weights is None:
            raise UserError(f"--{name} is for --weights: leave it out")


def _evaluate(config: EvaluateConfig) -> dict[str, Any]:
    from fastcyclegan.device import resolve_device
    from fastcyclegan.runs.evaluation import PairScores
    from fastcyclegan.runs.features import Extractor, Reference

    device = resolve_device(config.device)
    extractor = None
    if config.features:
        extractor = Extractor(Path(config.features), config.architecture, device)
    net, assumed = _generator(config, device) if config.weights else (None, {})
    judged, real, truth = _images(config, net)
    result: dict[str, Any] = {"images": len(judged.names), "size": judged.shown_size}
    if assumed:
        result["assumed"] = assumed
    parts, pairs, scores = judged.parts(), PairScores(), {}
    if truth:
        parts = _paired(parts, truth.parts(_order(truth, judged)), pairs)
    if real:
        result["real_images"] = len(real.names)
        scores |= Reference(real.parts(), extractor).scores(parts)
    if truth:
        deque(parts, maxlen=0)  # what is left of them
        scores |= pairs.means()
    result["scores"] = scores
    if extractor:
        result["features"] = _about(extractor)
    return result


def _paired(
    parts: Iterator[torch.Tensor], truths: Iterator[torch.Tensor], pairs: PairScores
) -> Iterator[torch.Tensor]:
    for images, truth in zip(parts, truths, strict=True):
        pairs.add(images, truth)
        yield images


def _about(extractor: Extractor) -> dict[str, str]:
    return {"file": str(extractor.path), "kind": extractor.name, "sha256": extractor.sha256}


class _Images(NamedTuple):
    """What a flag names, made as it is asked for.

    ``size`` is (width, height), ``names`` are without suffixes, and ``some`` makes the images of
    these numbers: uint8 (n, H, W, C).
    """

    flag: str
    names: list[str]
    size: tuple[int, int]
    some: Callable[[Sequence[int]], torch.Tensor]

    @property
    def shown_size(self) -> str:
        return "{}x{}".format(*self.size)

    def parts(self, order: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """All images, or those of these numbers, PIXELS at a time."""
        order = range(len(self.names)) if order is None else order
        count = max(1, PIXELS // prod(self.size))
        for first in range(0, len(order), count):
            yield self.some(order[first : first + count])


def _images(
    config: EvaluateConfig, net: Network | None
) -> tuple[_Images, _Images | None, _Images | None]:
    """The images to judge, real ones, and the truth of the former, of one size."""
    from fastcyclegan.runs.evaluation import SSIM_WINDOW

    channels = net.arch["output_nc"] if net else 3
    real, truth = (
        _read(config, flag, channels) if getattr(config, flag) else None
        for flag in ("real", "truth")
    )
    if not net:
        judged = _read(config, "fake", channels)
    elif "nz" in net.arch:
        judged = _sampled(net, config, config.num or len(real.names))
    else:
        judged = _translated(net, _read(config, "input", net.arch["input_nc"]))
    for other in (real, truth):
        if other and other.size != judged.size:
            raise UserError(
                f"{judged.flag} has images of {judged.shown_size}, {other.flag} of "
                f"{other.shown_size} pixels: give --size N"
            )
    if truth and min(truth.size) < SSIM_WINDOW:
        raise UserError(f"{truth.flag}: ssim needs images of {SSIM_WINDOW} pixels or more")
    return judged, real, truth


def _read(config: EvaluateConfig, flag: str, channels: int) -> _Images:
    from fastcyclegan.data.scan import scan_folder

    folder = Path(getattr(config, flag))
    scan = scan_folder(folder, min_size=1, called=f"--{flag}")
    shown = f"--{flag} {printable(folder)}"
    _refuse_bad(scan.quarantined)
    sizes = {(width, height) for height, width in scan.sizes}
    if config.size:
        sizes = {(config.size, config.size)}
    if len(sizes) > 1:
        two = " and ".join(f"{width}x{height}" for width, height in (min(sizes), max(sizes)))
        raise UserError(f"{shown} has images of different sizes, {two} pixels: give --size N")
    names = [str(path.relative_to(scan.root).with_suffix("")) for path in scan.files]
    return _Images(shown, names, *sizes, partial(_decoded, config, scan, channels))


def _refuse_bad(bad: Sequence[tuple[Path, str]]) -> None:
    if bad:
        path, reason = bad[0]
        more = f", and {len(bad) - 1} more" if bad[1:] else ""
        raise UserError(f"{printable(path)}: {reason}{more}: mend or remove what cannot be read")


def _decoded(
    config: EvaluateConfig, scan: Scan, channels: int, numbers: Sequence[int]
) -> torch.Tensor:
    from fastcyclegan.data.decode import decode_domain

    # a crop of no size leaves every image as large as it is
    fit = {"preprocess": "crop", "crop_size": 1}
    if config.size:
        fit = {"preprocess": config.preprocess, "load_size": config.size, "crop_size": config.size}
    files, sizes = ([items[i] for i in numbers] for items in (scan.files, scan.sizes))
    some = replace(scan, files=files, sizes=sizes)
    images = decode_domain(some, channels=channels, threads=config.num_threads, max_bad=1, **fit)
    _refuse_bad(images.quarantined)
    height, width = int(images.height[0]), int(images.width[0])
    return images.pixels.view(len(images), height, width, channels)


def _generator(config: EvaluateConfig, device: torch.device) -> tuple[Network, dict[str, Any]]:
    """That of ``weights``, and what was assumed of it as its file does not tell."""
    from fastcyclegan.models.weights import assumptions, open_generator
    from fastcyclegan.steps.compilation import require_kernels

    require_kernels(device, "--device cpu")
    weights = Path(config.weights)
    if config.direction and weights.is_file():
        raise UserError(f"--direction chooses from a run folder; {printable(weights)} is one file")
    direction = config.direction or "AtoB"
    net, metadata = open_generator(weights, direction, device, config.pixel_range)
    makes_noise = "nz" in net.arch
    for flag, applies in (("input", not makes_noise), ("num", makes_noise)):
        if not applies and getattr(config, flag) is not None:
            raise UserError(f"--{flag}: {printable(weights)} is a {net.title}; leave it out")
    if not makes_noise and not config.input:
        raise UserError(f"{printable(weights)} translates images: --input FOLDER is missing")
    if makes_noise and config.truth:
        raise UserError("--truth: the samples of a DCGAN have none; leave it out")
    return net, assumptions(metadata)


def _sampled(net: Network, config: EvaluateConfig, num: int) -> _Images:
    from fastcyclegan.data.images import to_uint8
    from fastcyclegan.models.sampling import fixed_noise, generate

    noise = fixed_noise(config.seed, num, net.arch["nz"])

    def some(numbers: Sequence[int]) -> torch.Tensor:
        return to_uint8(generate(net, noise[list(numbers)]), net.pixel_range)

    side = net.arch["size"]
    return _Images("--weights", list(map(str, range(num))), (side, side), some)


def _translated(net: Network, source: _Images) -> _Images:
    import torch

    from fastcyclegan.translation import Translator

    translator = Translator(net)

    def some(numbers: Sequence[int]) -> torch.Tensor:
        parts = source.some(numbers).split(BATCH)
        return torch.cat([torch.from_numpy(translator(part.numpy())) for part in parts])

    return source._replace(some=some)


def _order(truth: _Images, judged: _Images) -> list[int]:
    """The numbers of the truth of each image of ``judged``."""
    counts = len(judged.names), len(truth.names)
    if counts[0] != counts[1]:
        raise UserError(
            f"{judged.flag} has {counts[0]} images and {truth.flag} {counts[1]}: each image needs "
            "its truth, under the same name"
        )
    index = {name: i for i, name in enumerate(truth.names)}
    for name in judged.names:
        if name not in index:
            raise UserError(
                f"{truth.flag} has no image called {printable(name)}, which is in {judged.flag}"
            )
    if len(set(judged.names)) < counts[0]:
        raise UserError(f"{judged.flag}: two images have one name, but for the suffix; rename one")
    return [index[name] for name in judged.names]


def _lines(result: dict[str, Any]) -> list[str]:
    beside = f" beside {result['real_images']} real ones" if "real_images" in result else ""
    lines = [f"{result['images']} images of {result['size']} pixels{beside}"]
    for name, value in result["scores"].items():
        lines.append(f"{name:8} {value:<12.6g} {SCORES[name].meaning}")
    if "assumed" in result:
        guesses = ", ".join(f"{name} {value}" for name, value in result["assumed"].items())
        lines.append(f"assumed  {guesses}, which the weights do not tell")
    if "features" in result:
        about = result["features"]
        lines.append(f"features {printable(about['file'])}, {about['kind']}")
        lines.append(f"sha256   {about['sha256']}")
    return lines


if __name__ == "__main__":
    sys.exit(command.run(main))
