"""The images of one training: both domains to train on, and a few fixed ones to look at."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.decode import ImageSet, check_headers, decode_domain
from fastcyclegan.data.images import NOTE_16BIT, NOTE_GREY, from_uint8
from fastcyclegan.data.sampler import ImageSampler
from fastcyclegan.data.scan import Scan, find_domains, scan_folder
from fastcyclegan.data.survey import Survey
from fastcyclegan.data.toy import make_toy, toy_baselines
from fastcyclegan.errors import UserError

TOY_IMAGES, TOY_TRAINED = 16, 200
TOY_SEED = 0
WATCHED_IMAGES = 4


@dataclass(frozen=True)
class Watched:
    """Fixed images, followed through the training.

    Attributes:
        real_A, real_B: (N, C, H, W) in the options' pixel range, fp32.
        truth_A, truth_B: what real_B and real_A should become, where that is known.
        baselines: PSNR in dB against the truth that no network is needed for: of the untranslated
            input, and of the best affine colour map.
    """

    real_A: torch.Tensor
    real_B: torch.Tensor
    truth_A: torch.Tensor | None = None
    truth_B: torch.Tensor | None = None
    baselines: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSet:
    """Everything that was decoded for a training, on the CPU."""

    set_A: ImageSet
    set_B: ImageSet
    watched: Watched
    digest: str

    @property
    def quarantined(self) -> list[tuple[Path, str]]:
        """Files passed over, with the reason."""
        return self.set_A.quarantined + self.set_B.quarantined


def load_training_set(config: TrainConfig, say: Callable[[str], None]) -> TrainingSet:
    """Scan and decode what the options name; without a folder, the toy domains are made first.

    Args:
        config: the resolved options.
        say: is told, in one line each, what was found.

    Raises:
        UserError: a folder or its images cannot be used; the message names it.
    """
    roots = config.dataroot, config.dataroot_A, config.dataroot_B
    is_toy = roots == (None, None, None)
    if is_toy:
        toy = toy_root(config)
        say(f"no --dataroot: training on toy images, written to {toy}")
        roots = str(toy), None, None
    scans = _scans(config, roots, "train")
    set_A, set_B = (_decode(config, scan, domain) for domain, scan in zip("AB", scans, strict=True))
    for domain, images in zip("AB", (set_A, set_B), strict=True):
        say(f"domain {domain}: {images.summary}")
    _check_sizes(config, set_A, set_B)
    for domain, flag, images in (("A", "input_nc", set_A), ("B", "output_nc", set_B)):
        refuse_grey(images, domain, flag)
    if is_toy:
        watched = _watched_toy(config, Path(roots[0]))
    else:
        watched = _watched(config, roots, scans, say)
    digest = hashlib.sha256(f"{set_A.digest} {set_B.digest}".encode()).hexdigest()
    return TrainingSet(set_A, set_B, watched, digest)


def survey_domains(config: TrainConfig) -> Survey:
    """What :func:`load_training_set` would find, without decoding or writing an image.

    Raises:
        UserError: a folder cannot be used; the message names it.
    """
    roots = config.dataroot, config.dataroot_A, config.dataroot_B
    channels = config.input_nc, config.output_nc
    if roots == (None, None, None):
        toy = [(config.crop_size, config.crop_size)] * TOY_TRAINED
        return Survey.of(config, {"A": toy, "B": toy}, channels, 0)
    scans = dict(zip("AB", _scans(config, roots, "train"), strict=True))
    for scan in scans.values():
        check_headers(scan, **fit_of(config))
    sizes = {name: scan.sizes for name, scan in scans.items()}
    unusable = sum(len(scan.quarantined) for scan in scans.values())
    return Survey.of(config, sizes, channels, unusable)


def make_sampler(
    config: TrainConfig,
    images: TrainingSet,
    device: torch.device,
    dtype: torch.dtype,
    part: tuple[int, int] = (0, 1),
) -> ImageSampler:
    """The stream of training batches, or of a ``part`` of each, in ``dtype`` on ``device``."""
    return ImageSampler(
        images.set_A,
        images.set_B,
        batch_size=config.batch_size,
        crop_size=config.crop_size if config.preprocess.endswith("crop") else None,
        flip=not config.no_flip,
        serial=config.serial_batches,
        seed=config.seed,
        device=device,
        dtype=dtype,
        pixel_range=config.pixel_range,
        data_on=config.data_on,
        part=part,
    )


def toy_root(config: TrainConfig) -> Path:
    """The folder of the toy domains in the size of the options, which are made first if need be."""
    size = config.crop_size
    root = Path("datasets") / f"toy-{size}px"
    try:
        counts = {"n_train": TOY_TRAINED, "n_test": TOY_IMAGES}
        return make_toy(root, size=size, **counts, seed=TOY_SEED)
    except OSError as problem:
        raise UserError(f"{root}: the toy images cannot be written ({problem.strerror})") from None


def _scans(config: TrainConfig, roots: tuple[str | None, ...], phase: str) -> tuple[Scan, Scan]:
    folders = find_domains(*roots, phase=phase)
    if config.direction == "BtoA":
        folders = folders[::-1]
    limits = {"max_dataset_size": config.max_dataset_size, "min_size": config.min_size}
    scan_A, scan_B = (scan_folder(folder, **limits) for folder in folders)
    return scan_A, scan_B


def _decode(config: TrainConfig, scan: Scan, domain: str, **changed: object) -> ImageSet:
    channels = config.input_nc if domain == "A" else config.output_nc
    common = {"channels": channels, "alpha": config.alpha, "threads": config.num_threads}
    return decode_domain(scan, **common, **(fit_of(config) | changed))


def fit_of(config: TrainConfig) -> dict[str, Any]:
    """How the images of a training are brought to size, and how many may be unusable."""
    return {
        "preprocess": config.preprocess,
        "load_size": config.load_size,
        "crop_size": config.crop_size,
        "max_bad": config.max_bad,
    }


def _check_sizes(config: TrainConfig, set_A: ImageSet, set_B: ImageSet) -> None:
    if config.preprocess.endswith("crop"):
        return
    for images in (set_A, set_B):
        bad = ((images.height % 4 != 0) | (images.width % 4 != 0)).nonzero()
        if len(bad):
            first = int(bad[0])
            size = f"{int(images.width[first])}x{int(images.height[first])}"
            raise UserError(
                f"{images.names[first]}: {size} pixels after --preprocess {config.preprocess}, but "
                "sides must be multiples of 4; use --preprocess none or scale_width_and_crop"
            )


def refuse_grey(images: ImageSet, domain: str, flag: str) -> None:
    """Raise UserError if all of ``images`` are grey files, but not for a network of one channel."""
    if all_grey(images):
        raise UserError(
            f"every image of domain {domain} is grey, and --{flag} {images.channels} is for "
            f"colour: use --{flag} 1, with --lambda_identity 0 where the other domain has colour"
        )


def all_grey(images: ImageSet) -> bool:
    """Whether all of ``images`` are grey files that were decoded into several channels."""
    grey = images.notes.get(NOTE_GREY, 0) + images.notes.get(NOTE_16BIT, 0)
    # files that could not be decoded are among the notes too, hence the look at the pixels
    return images.channels > 1 and grey >= len(images) and not _has_colour(images.pixels)


def _has_colour(pixels: torch.Tensor) -> bool:
    return not (pixels[:, :1] == pixels[:, 1:3]).all()


def _watched(
    config: TrainConfig,
    roots: tuple[str | None, ...],
    train: tuple[Scan, Scan],
    say: Callable[[str], None],
) -> Watched:
    """The first images of the test folders or, where these cannot be used, of the training ones."""
    if config.dataroot:
        try:
            return _first_of(config, _scans(config, roots, "test"))
        except UserError as problem:
            say(f"previews show training images, as there are no test images ({problem})")
    return _first_of(config, train)


def _first_of(config: TrainConfig, scans: tuple[Scan, Scan]) -> Watched:
    real = []
    for domain, scan in zip("AB", scans, strict=True):
        # twice as many as wanted, in case some cannot be decoded
        first = slice(2 * WATCHED_IMAGES)
        few = Scan(scan.root, scan.files[first], sizes=scan.sizes[first])
        real.append(_images(config, _squared(config, few, domain))[:WATCHED_IMAGES])
    return Watched(*real)


def _watched_toy(config: TrainConfig, root: Path) -> Watched:
    """The test images with their true counterparts; ``BtoA`` swaps the names of the domains."""
    swapped = config.direction == "BtoA"
    tensors = {}
    for kind in ("test", "truth"):
        for domain, folder in zip("AB", "BA" if swapped else "AB", strict=True):
            scan = scan_folder(root / f"{kind}{folder}")
            tensors[kind + domain] = _images(config, _squared(config, scan, domain))
    if (config.input_nc, config.output_nc) != (3, 3):
        return Watched(tensors["testA"], tensors["testB"])
    baselines = toy_baselines(config.crop_size, TOY_IMAGES, TOY_SEED)
    if swapped:
        baselines = {name[:-1] + "BA"["AB".index(name[-1])]: x for name, x in baselines.items()}
    return Watched(
        tensors["testA"], tensors["testB"], tensors["truthA"], tensors["truthB"], baselines
    )


def _squared(config: TrainConfig, scan: Scan, domain: str) -> ImageSet:
    size = config.crop_size
    changed = {
        "preprocess": "resize_and_crop",
        "load_size": size,
        "crop_size": size,
        "max_bad": 1.0,
    }
    return _decode(config, scan, domain, **changed)


def _images(config: TrainConfig, images: ImageSet) -> torch.Tensor:
    size = int(images.height[0]), int(images.width[0])
    pixels = images.pixels.view(len(images.names), *size, -1)
    return from_uint8(pixels, pixel_range=config.pixel_range)
