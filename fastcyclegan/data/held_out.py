"""The images that a CycleGAN is judged on: not trained on, with their truth where it is known."""

from dataclasses import dataclass
from pathlib import Path, PurePath

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.decode import decode_domain
from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.data.scan import Scan, find_domains, scan_folder
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable

# Images of a domain, the first ones.
MOST = 256


@dataclass(frozen=True)
class HeldOut:
    """Squares of crop_size, uint8 (N, H, W, C) on the CPU.

    Attributes:
        test_A, test_B: images of each domain.
        truth_A, truth_B: what ``test_B`` and ``test_A`` should become, or None.
    """

    test_A: torch.Tensor
    test_B: torch.Tensor
    truth_A: torch.Tensor | None
    truth_B: torch.Tensor | None


def load_held_out(config: TrainConfig, root: Path | str | None) -> HeldOut:
    """Decode testA and testB of the folder ``root``, and truthA and truthB where these are there.

    truthB has the images of testA, under their names, as they should become; truthA those of testB.

    Raises:
        UserError: there are no test images, or an image has no truth.
    """
    if root is None:
        raise UserError("--eval_every needs --dataroot, with testA and testB: what to judge by")
    try:
        folders = find_domains(root, phase="test")
    except UserError as problem:
        raise UserError(f"--eval_every: {problem}") from None
    letters = "AB"
    if config.direction == "BtoA":
        folders, letters = folders[::-1], "BA"
    limit = min(MOST, config.max_dataset_size or MOST)
    tests, truths = [], []
    for domain, folder in zip("AB", folders, strict=True):
        scan = scan_folder(folder, max_dataset_size=limit, min_size=config.min_size)
        tests.append(_squares(config, scan, domain))
    for domain, letter, test in zip("AB", letters, tests[::-1], strict=True):
        folder = Path(root) / f"truth{letter}"
        truths.append(_truth(config, folder, domain, test) if folder.is_dir() else None)
    return HeldOut(*map(_tensor, tests), *truths)


def _truth(config: TrainConfig, folder: Path, domain: str, test: ImageSet) -> torch.Tensor:
    """What the images of ``test`` should become, in their order."""
    wanted = [_stem(name) for name in test.names]
    scan = scan_folder(folder, min_size=config.min_size)
    found = [_stem(path.relative_to(scan.root)) for path in scan.files]
    used = [i for i, stem in enumerate(found) if stem in set(wanted)]
    files, sizes = ([items[i] for i in used] for items in (scan.files, scan.sizes))
    truth = _squares(config, Scan(scan.root, files, sizes=sizes), domain) if used else None
    index = {_stem(name): i for i, name in enumerate(truth.names)} if truth else {}
    for stem in wanted:
        if stem not in index:
            raise UserError(
                f"--eval_every: {printable(folder)} has no usable image called {printable(stem)}"
            )
    return _tensor(truth)[[index[stem] for stem in wanted]]


def _stem(name: PurePath | str) -> str:
    return PurePath(name).with_suffix("").as_posix()


def _squares(config: TrainConfig, scan: Scan, domain: str) -> ImageSet:
    return decode_domain(
        scan,
        channels=config.input_nc if domain == "A" else config.output_nc,
        preprocess="resize_and_crop",
        load_size=config.crop_size,
        crop_size=config.crop_size,
        alpha=config.alpha,
        threads=config.num_threads,
        max_bad=1.0,
    )


def _tensor(images: ImageSet) -> torch.Tensor:
    side = int(images.height[0])
    return images.pixels.view(len(images), side, side, images.channels)
