"""python -m fastcyclegan.sample: images from a trained DCGAN's generator.

A grid of samples, or an animation in which each of them walks through the noise and comes back.
torch is imported only after the options are read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from fastcyclegan import command
from fastcyclegan.config import SampleConfig
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.options import parse

if TYPE_CHECKING:
    import numpy as np
    import torch

    from fastcyclegan.models import Network

# Points that each image of an animation passes on its round.
WAYPOINTS = 4
CHANNELS = (1, 3, 4)
MAX_PIXELS = 64 * 10**6


def main(argv: Sequence[str]) -> int:
    """Run the command with the words ``argv`` and return its exit code. Raises UserError."""
    config = parse(
        SampleConfig,
        "python -m fastcyclegan.sample",
        "Make images with a trained DCGAN.",
        argv,
    )
    output = Path(config.output)
    _check_output(config, output)
    net = _load(config)
    from fastcyclegan.data.images import write_animation, write_image

    if config.interpolate:
        write_animation(output, _walk(net, config), config.frames, 1000 // config.fps)
    else:
        from fastcyclegan.models.sampling import fixed_noise

        write_image(output, _grid(net, fixed_noise(config.seed, config.num, net.arch["nz"])))
    print(f"wrote {printable(output)}")
    return command.DONE


def _check_output(config: SampleConfig, output: Path) -> None:
    suffix = ".webp" if config.interpolate else None
    if suffix and output.suffix.lower() != suffix:
        raise UserError(f"--output {printable(output)}: --interpolate writes .webp files")
    if not output.suffix:
        raise UserError(f"--output {printable(output)}: give it a suffix such as .png")
    if output.resolve() == Path(config.weights).resolve():
        raise UserError(f"--output would replace --weights {printable(output)}: write elsewhere")
    if output.exists() and not config.overwrite:
        raise UserError(f"--output {printable(output)} exists: --overwrite replaces it")
    if not output.parent.is_dir():
        raise UserError(f"--output {printable(output)}: there is no folder {output.parent}")


def _load(config: SampleConfig) -> Network:
    from fastcyclegan.device import resolve_device, resolve_precision
    from fastcyclegan.models.weights import open_generator, told_assumptions
    from fastcyclegan.steps.compilation import require_kernels

    weights = Path(config.weights)
    device = resolve_device(config.device)
    require_kernels(device, "--device cpu")
    resolve_precision("fp32", device)
    net, metadata = open_generator(weights, device=device, pixel_range=config.pixel_range)
    arch = net.arch
    if "nz" not in arch:
        raise UserError(
            f"{printable(weights)} translates images: use python -m fastcyclegan.translate"
        )
    if arch["output_nc"] not in CHANNELS:
        raise UserError(
            f"{printable(weights)} has output_nc {arch['output_nc']}, but image files have 1, 3 or "
            "4 channels: use fastcyclegan.load_generator from Python"
        )
    if config.num * arch["size"] ** 2 > MAX_PIXELS:
        raise UserError(f"--num {config.num}: more than {MAX_PIXELS // 10**6} megapixels in all")
    if told := told_assumptions(weights, net, metadata):
        print(told)
    return net


def _grid(net: Network, z: torch.Tensor) -> np.ndarray:
    """What ``net`` makes of the noise ``z``, (N, nz), as one picture."""
    import numpy as np

    from fastcyclegan.data.images import to_uint8
    from fastcyclegan.models.sampling import BATCH, generate
    from fastcyclegan.runs.previews import grid

    parts = [to_uint8(generate(net, part), net.pixel_range).numpy() for part in z.split(BATCH)]
    return grid(np.concatenate(parts), columns=ceil(sqrt(len(z))))


def _walk(net: Network, config: SampleConfig) -> Iterator[np.ndarray]:
    """The frames: every image goes round its own WAYPOINTS, along great circles."""
    from fastcyclegan.models.sampling import fixed_noise, slerp

    z = fixed_noise(config.seed, config.num * WAYPOINTS, net.arch["nz"])
    # the first of each image's points are the samples of the same seed
    points = z.view(WAYPOINTS, config.num, -1)
    for frame in range(config.frames):
        leg, share = divmod(frame * WAYPOINTS / config.frames, 1)
        start, end = points[int(leg)], points[(int(leg) + 1) % WAYPOINTS]
        yield _grid(net, slerp(start, end, share))


if __name__ == "__main__":
    sys.exit(command.run(main))
