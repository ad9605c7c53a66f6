"""Scores by name, and the options of the command that computes them."""

from dataclasses import dataclass
from typing import NamedTuple

from fastcyclegan.options import option
from fastcyclegan.pixel_range import PIXEL_RANGES


class Score(NamedTuple):
    """One score: what it is, and which way is better."""

    meaning: str
    more_is_better: bool = False


SCORES = {
    "swd": Score("sliced Wasserstein distance of the sets, of pixels from -1 to 1; less is better"),
    "diversity": Score("distance between samples over that between real images", True),
    "fid": Score("Frechet distance of the features; less is better"),
    "kid": Score("kernel distance of the features; less is better"),
    "kid_std": Score("its standard deviation over subsets"),
    "psnr": Score("dB, mean over pairs; more is better", True),
    "ssim": Score("structural similarity, mean over pairs; 1 is best", True),
    "l1": Score("mean absolute difference, of pixels from -1 to 1; less is better"),
}
# What can say which networks are best.
METRICS = ("swd", "fid", "kid", "psnr", "ssim", "l1")
# Of those, what needs features, and what needs the truth.
OF_FEATURES, OF_PAIRS = ("fid", "kid"), ("psnr", "ssim", "l1")
# Of feature extractors whose weights alone can be given.
ARCHITECTURES = ("inception_v3",)


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of ``python -m fastcyclegan.evaluate``."""

    real: str | None = option(None, "folder of real images: swd, and fid and kid with --features")
    truth: str | None = option(
        None, "folder of what each image should be, under the same name: psnr, ssim, l1"
    )
    fake: str | None = option(None, "folder of the images to judge")
    weights: str | None = option(
        None, "or a generator whose images are judged: a .safetensors or .pth file, or a run folder"
    )
    input: str | None = option(None, "folder of images for --weights to translate")
    direction: str | None = option(
        None, "which generator of a run folder (default: AtoB)", choices=["AtoB", "BtoA"]
    )
    pixel_range: str | None = option(
        None, "of a .pth, which does not tell (default: tanh)", choices=list(PIXEL_RANGES)
    )
    num: int | None = option(
        None, "samples of a DCGAN (default: as many as --real has)", low=1, high=10**6
    )
    seed: int = option(0, "of a DCGAN's noise", low=0, high=2**32 - 1)
    size: int | None = option(
        None, "pixels: bring all images to N x N (default: they have one size)", low=11, high=16384
    )
    preprocess: str = option(
        "resize_and_crop",
        "how --size does: by scaling, or keeping proportions and cutting out the centre",
        choices=["resize_and_crop", "resize_and_center_crop"],
    )
    features: str | None = option(
        None, "for fid and kid, TorchScript, a program: only from whom you trust; or weights"
    )
    architecture: str | None = option(
        None, "of --features where these are weights", choices=ARCHITECTURES
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    num_threads: int = option(4, "threads that decode images", low=1, high=256)
    json: bool = option(False, "print one JSON object instead of lines")
