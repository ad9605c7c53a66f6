"""The images of a training on one domain, and some to compare with what is generated."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.decode import check_headers, decode_domain
from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.data.scan import scan_folder
from fastcyclegan.data.survey import Survey
from fastcyclegan.data.toy import toy_pairs
from fastcyclegan.data.training_set import all_grey, fit_of
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable

TOY_IMAGES = 1024
TOY_SEED = 0
COMPARED_IMAGES = 256


@dataclass(frozen=True)
class OneDomain:
    """Everything that was decoded for a training, on the CPU.

    Attributes:
        images: to train on.
        compared: uint8 (N, H, W, C), at most COMPARED_IMAGES: held-out images, or some of
            ``images`` where there are no others.
        held_out: which of the two.
    """

    images: ImageSet
    compared: torch.Tensor
    held_out: bool

    @property
    def digest(self) -> str:
        """That of the images to train on."""
        return self.images.digest

    @property
    def quarantined(self) -> list[tuple[Path, str]]:
        """Files passed over, with the reason."""
        return self.images.quarantined


def load_one_domain(config: TrainConfig, say: Callable[[str], None]) -> OneDomain:
    """Scan and decode what the options name; without a folder, toy images are painted.

    Args:
        config: the resolved options; ``preprocess`` must end in crop.
        say: is told, in one line each, what was found.

    Raises:
        UserError: the folder or its images cannot be used; the message names it.
    """
    if config.dataroot is None:
        return _toy(config, say)
    scan = scan_folder(
        config.dataroot, max_dataset_size=config.max_dataset_size, min_size=config.min_size
    )
    images = decode_domain(
        scan,
        channels=config.output_nc,
        alpha=config.alpha,
        threads=config.num_threads,
        **fit_of(config),
    )
    say(images.summary)
    if all_grey(images):
        raise UserError(
            f"every image in {printable(config.dataroot)} is grey, and --output_nc "
            f"{images.channels} is for colour: use --output_nc 1"
        )
    few = torch.linspace(0, len(images) - 1, min(len(images), COMPARED_IMAGES)).long()
    compared = torch.stack([_middle(images.image(int(i)), config.crop_size) for i in few])
    return OneDomain(images, compared, held_out=False)


def survey_one_domain(config: TrainConfig) -> Survey:
    """What :func:`load_one_domain` would find, without decoding an image. Raises UserError."""
    if config.dataroot is None:
        count = min(TOY_IMAGES, config.max_dataset_size or TOY_IMAGES)
        toy = [(config.crop_size, config.crop_size)] * count
        return Survey.of(config, {"real": toy}, [config.output_nc], 0)
    scan = scan_folder(
        config.dataroot, max_dataset_size=config.max_dataset_size, min_size=config.min_size
    )
    check_headers(scan, **fit_of(config))
    return Survey.of(config, {"real": scan.sizes}, [config.output_nc], len(scan.quarantined))


def _toy(config: TrainConfig, say: Callable[[str], None]) -> OneDomain:
    size, channels = config.crop_size, config.output_nc
    if channels == 4:
        raise UserError("--output_nc 4: the toy images have no transparency; give a --dataroot")
    count = min(TOY_IMAGES, config.max_dataset_size or TOY_IMAGES)
    say(f"no --dataroot: training on {count} toy images, painted in memory")
    train, compared = (
        torch.from_numpy(toy_pairs(size, n, TOY_SEED, split)[0])
        for n, split in ((count, "trainA"), (COMPARED_IMAGES, "testA"))
    )
    if channels == 1:
        train, compared = map(_grey, (train, compared))
    side = torch.full((count,), size)
    offset = torch.arange(count) * size**2
    names = [f"toy/{i:04d}" for i in range(count)]
    images = ImageSet(train.reshape(-1, channels), offset, side, side, names)
    return OneDomain(images, compared, held_out=True)


def _grey(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(-1, keepdim=True).round().byte()


def _middle(image: torch.Tensor, size: int) -> torch.Tensor:
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]
