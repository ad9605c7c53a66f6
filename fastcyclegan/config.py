"""Options: one frozen dataclass per command.

Names and defaults are those of junyanz/pytorch-CycleGAN-and-pix2pix wherever it has the option.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastcyclegan.errors import UserError
from fastcyclegan.jz_options import MAPPED, REFUSED_MODELS, REMOVED, REMOVED_FROM_TRANSLATE
from fastcyclegan.options import option, positional, required
from fastcyclegan.pixel_range import PIXEL_RANGES
from fastcyclegan.presets import PRESETS
from fastcyclegan.scores import ARCHITECTURES, METRICS
from fastcyclegan.trackers import TRACKERS

CUDA_GRAPH = ("auto", "on", "off")


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``python -m fastcyclegan.train``."""

    MAPPED: ClassVar[Mapping[str, Sequence[str]]] = MAPPED
    REMOVED: ClassVar[Mapping[str, str]] = REMOVED

    dataroot: str | None = option(
        None, "folder with trainA, trainB and perhaps testA, testB; for a DCGAN, of images"
    )
    dataroot_A: str | None = option(None, "folder of domain A's images, instead of --dataroot")
    dataroot_B: str | None = option(None, "folder of domain B's images, instead of --dataroot")
    name: str | None = option(None, "run name; without it the next number, or the run to continue")
    checkpoints_dir: str = option("./checkpoints", "where run folders are made")
    preset: str | None = option(
        None, "a set of defaults, see --list_presets", choices=list(PRESETS)
    )
    list_presets: bool = option(False, "show what each preset sets, and train nothing")
    model: str = option(
        "cycle_gan", "what is trained", choices=["cycle_gan", "dcgan"], refused=REFUSED_MODELS
    )
    direction: str = option("AtoB", "which domain is called A", choices=["AtoB", "BtoA"])
    input_nc: int = option(3, "channels of domain A: 1 grey, 3 RGB, 4 RGBA", choices=[1, 3, 4])
    output_nc: int = option(3, "channels of domain B: 1 grey, 3 RGB, 4 RGBA", choices=[1, 3, 4])
    netG: str = option(
        "resnet_9blocks", "generator: resnet_Nblocks, any N, unet_128, unet_256 or johnson"
    )
    netD: str = option(
        "basic", "discriminator: PatchGAN, or per pixel", choices=["basic", "n_layers", "pixel"]
    )
    n_layers_D: int = option(3, "layers of --netD n_layers", low=1, high=8)
    ngf: int = option(64, "generator width", low=1, high=1024)
    ndf: int = option(64, "discriminator width", low=1, high=1024)
    nz: int = option(100, "length of a DCGAN's noise", low=1, high=4096)
    ema: float = option(
        0.0, "average a DCGAN's generator, by this share of the last; 0: off", low=0.0, high=0.99999
    )
    norm: str = option("instance", "normalisation", choices=["instance", "batch", "none"])
    padding: str = option("reflect", "of residual blocks", choices=["reflect", "replicate", "zero"])
    johnson_padding: str = option(
        "start", "40 pixels at the input, or in each layer", choices=["start", "each"]
    )
    dropout: bool = option(False, "drop half of the features inside the generators' blocks")
    upsample: str = option(
        "transpose", "resize: no transposed convolutions", choices=["transpose", "resize"]
    )
    residual_relu: bool = option(False, "a ReLU behind the sum of each residual block")
    pixel_range: str = option(
        "tanh", "tanh: pixels are -1 to 1; linear255, tanh255: 0 to 255", choices=list(PIXEL_RANGES)
    )
    init_type: str = option(
        "normal", "how weights begin", choices=["normal", "xavier", "kaiming", "orthogonal"]
    )
    init_gain: float = option(0.02, "scale of the initialisation", above=0.0, high=100.0)
    init_from: str | None = option(None, "start from latest_net_*.pth, or a run, in this folder")
    preprocess: str = option(
        "resize_and_crop",
        "how images are brought to size",
        choices=[
            "resize_and_crop",
            "crop",
            "scale_width",
            "scale_width_and_crop",
            "none",
            "resize_and_center_crop",
        ],
    )
    load_size: int = option(286, "pixels: images are scaled to this", low=4, high=16384)
    crop_size: int = option(256, "pixels: then cropped to this", low=16, high=16384)
    no_flip: bool = option(False, "do not mirror images at random", inverse="flip")
    serial_batches: bool = option(False, "take images in order instead of at random")
    max_dataset_size: int | None = option(None, "use at most so many images per domain", low=1)
    max_bad: float = option(0.01, "largest fraction of unusable images", low=0.0, high=1.0)
    min_size: int = option(8, "pixels: pass over smaller images", low=1)
    alpha: str = option("white", "what lies under transparency", choices=["white", "black", "drop"])
    num_threads: int = option(4, "threads that decode images", low=1, high=256)
    data_on: str = option("auto", "where decoded images lie", choices=["auto", "device", "host"])
    batch_size: int = option(1, "images of each domain per step", low=1, high=65536)
    n_epochs: int = option(100, "epochs at the full learning rate", low=0, high=10**6)
    n_epochs_decay: int = option(100, "epochs of decay", low=0, high=10**6)
    steps: int | None = option(None, "stop after so many optimiser steps", low=1, high=10**9)
    fit_schedule: bool = option(
        False, "compress the epochs of the schedule into --steps", inverse="no_fit_schedule"
    )
    lr: float = option(0.0002, "learning rate of Adam", above=0.0, high=1.0)
    beta1: float = option(0.5, "Adam's first momentum", low=0.0, high=0.999999)
    lr_policy: str = option(
        "linear",
        "how the rate falls",
        choices=["linear", "step", "plateau", "cosine", "article"],
    )
    lr_decay_iters: int = option(50, "epochs between two cuts of --lr_policy step", low=1)
    updates: str = option(
        "joint",
        "both generators, then both discriminators, or one network after another",
        choices=["joint", "sequential"],
    )
    gan_mode: str = option("lsgan", "GAN loss", choices=["lsgan", "vanilla", "wgangp"])
    pool_size: int = option(50, "fakes kept to train the discriminators", low=0, high=100000)
    lambda_A: float = option(10.0, "weight of A -> B -> A", low=0.0, high=1e6)
    lambda_B: float = option(10.0, "weight of B -> A -> B", low=0.0, high=1e6)
    lambda_identity: float = option(0.5, "weight of the identity loss; 0: off", low=0.0, high=1e6)
    compile: bool = option(False, "compile the networks with torch.compile")
    compile_scope: str = option(
        "block", "what --compile compiles at once; step takes minutes", choices=["block", "step"]
    )
    cuda_graph: str = option(
        "auto", "one CUDA graph for the whole step; auto: with --compile", choices=CUDA_GRAPH
    )
    twin_streams: bool = option(
        False, "G_A beside G_B and D_A beside D_B, on two streams of a GPU; not measured yet"
    )
    impl: str = option(
        "fused", "the step: fused, or reference, plain and slow", choices=["fused", "reference"]
    )
    precision: str = option(
        "auto", "bf16 where the device has it, else fp32", choices=["auto", "fp32", "tf32", "bf16"]
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    sync_bn: bool = option(False, "batch norms over the images of all processes, as of one")
    dist_timeout: float = option(
        600.0, "seconds that one process waits for the others at most", above=0.0, high=86400.0
    )
    seed: int = option(0, "of everything random", low=0, high=2**32 - 1)
    deterministic: bool = option(False, "only deterministic operations")
    resume: str = option("auto", "auto continues an unfinished run", choices=["auto", "none"])
    print_freq: int = option(100, "images between two lines of losses", low=1)
    display_freq: int = option(400, "images between two previews; at most 100 are made", low=1)
    save_every_steps: int | None = option(None, "steps between checkpoints, not epochs", low=1)
    save_epoch_freq: int = option(5, "epochs between checkpoints", low=1)
    keep: int = option(3, "checkpoints kept", low=1)
    milestone_epochs: int = option(50, "epochs between checkpoints kept for good; 0: none", low=0)
    eval_every: int | None = option(
        None, "steps between two judgements on the test images; the best networks are kept", low=1
    )
    eval_metric: str | None = option(
        None,
        "the score that says what is best (default: psnr where the truth is known, else swd)",
        choices=METRICS,
    )
    eval_features: str | None = option(
        None, "score fid and kid as well: see evaluate --features, a program that is run"
    )
    eval_architecture: str | None = option(
        None, "of --eval_features where these are weights", choices=ARCHITECTURES
    )
    max_skips: int = option(10, "steps in a row that may be not finite before going back", low=1)
    resume_force: bool = option(False, "continue --name with options that change what is computed")
    dry_run: bool = option(False, "say what the training would take, and write nothing")
    nvtx: bool = option(False, "mark the phases of each step for Nsight; always on under it")
    profile: str | None = option(
        None, "torch: a trace of some steps, for Perfetto, in the run folder", choices=["torch"]
    )
    profile_steps: str | None = option(
        None, "A:B profiles steps A to B - 1: in the trace, or by cudaProfilerApi"
    )
    track: str | None = option(
        None, "show metrics and previews there too, see docs/api.md", choices=TRACKERS
    )


@dataclass(frozen=True)
class TranslateConfig:
    """Options of ``python -m fastcyclegan.translate``."""

    REMOVED: ClassVar[Mapping[str, str]] = REMOVED_FROM_TRANSLATE

    weights: str = required("a .safetensors or .pth file of a generator, or a run folder")
    input: str = required("an image, or a folder of images")
    output: str = required("the image to write, or the folder to write images into")
    direction: str | None = option(
        None, "which generator of a run folder (default: AtoB)", choices=["AtoB", "BtoA"]
    )
    pixel_range: str | None = option(
        None, "of a .pth, which does not tell (default: tanh)", choices=list(PIXEL_RANGES)
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = option(
        "auto", "bf16 on a GPU that has it, else fp32", choices=["auto", "fp32", "tf32", "bf16"]
    )
    batch_size: int | None = option(None, "images at once (default: 8; CPU: its cores)", low=1)
    num_threads: int = option(4, "threads that decode and encode images for a GPU", low=1, high=256)
    tile: int | None = option(
        None, "pixels: compute larger images in bands of N x N, exactly", low=64, high=16384
    )
    format: str = option("png", "of images in a folder", choices=["png", "jpg", "webp"])
    quality: int = option(95, "of JPEG and WebP", low=1, high=100)
    alpha: str = option(
        "keep",
        "transparency: keep it, or lay the image on a colour, or drop it",
        choices=["keep", "white", "black", "drop"],
    )
    keep_exif: bool = option(False, "copy EXIF data, also of places and times")
    overwrite: bool = option(False, "replace images that exist at the output")


@dataclass(frozen=True)
class ExportConfig:
    """Options of ``python -m fastcyclegan.export``."""

    weights: str = required("a .safetensors or .pth file, or a run folder")
    format: str = required(
        "onnx; jz: .pth of junyanz's code; examples: .pth of pytorch/examples' DCGAN; safetensors",
        choices=["onnx", "jz", "examples", "safetensors"],
    )
    output: str = required("the file to write, or the folder to write files into")
    direction: str | None = option(
        None, "which generator of a run folder for onnx (default: AtoB)", choices=["AtoB", "BtoA"]
    )
    pixel_range: str | None = option(
        None, "of a .pth, which does not tell (default: tanh)", choices=list(PIXEL_RANGES)
    )
    overwrite: bool = option(False, "replace files that exist at the output")


@dataclass(frozen=True)
class CheckpointConfig:
    """Options of ``python -m fastcyclegan.checkpoint``."""

    action: str = positional(
        "verify, list or prune: read every byte, show, or remove old checkpoints",
        choices=["verify", "list", "prune"],
    )
    run: str = positional("a run folder")
    keep: int = option(3, "newest sound checkpoints that prune leaves; milestones stay too", low=1)


@dataclass(frozen=True)
class SampleConfig:
    """Options of ``python -m fastcyclegan.sample``."""

    weights: str = required("a .safetensors or .pth file of a DCGAN's generator, or a run folder")
    output: str = required("the picture to write; with --interpolate a .webp file")
    num: int = option(64, "images in the picture", low=1, high=4096)
    seed: int = option(
        0, "of the noise; a training's own gives its previews", low=0, high=2**32 - 1
    )
    interpolate: bool = option(False, "write an animation: every image walks through the noise")
    frames: int = option(48, "frames of the animation", low=4, high=1000)
    fps: int = option(12, "frames per second", low=1, high=60)
    pixel_range: str | None = option(
        None, "of a .pth, which does not tell (default: tanh)", choices=list(PIXEL_RANGES)
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    overwrite: bool = option(False, "replace a file that exists at the output")


@dataclass(frozen=True)
class ReportConfig:
    """Options of ``python -m fastcyclegan.report``."""

    run: tuple[str, ...] = positional(
        "run folders: one gets its report anew, more are compared", several=True
    )
    output: str | None = option(
        None, "the page to write (default: RUN/report.html; of several, ./comparison.html)"
    )
    overwrite: bool = option(False, "replace a page that exists at --output")


@dataclass(frozen=True)
class DoctorConfig:
    """Options of ``python -m fastcyclegan.doctor``."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N: what training would use")
    checkpoints_dir: str = option("./checkpoints", "where run folders would be made")
    json: bool = option(False, "print one JSON object instead of lines")


# Sizes in pixels of the images that a DCGAN can make.
DCGAN_SIZES = (16, 32, 64, 128, 256)

# Options that mean nothing to the other system.
ONLY_OF: dict[str, frozenset[str]] = {
    "cycle_gan": frozenset(
        (
            *("dataroot_A", "dataroot_B", "direction", "input_nc", "netG", "netD", "n_layers_D"),
            *("norm", "padding", "johnson_padding", "dropout", "upsample", "residual_relu"),
            *("updates", "gan_mode", "pool_size", "lambda_A", "lambda_B", "lambda_identity"),
        )
    ),
    "dcgan": frozenset({"nz", "ema"}),
}


def has_batch_norm(config: TrainConfig) -> bool:
    """Whether the networks of ``config`` have."""
    return config.model == "dcgan" or config.norm == "batch"


def generator_depth(netG: str) -> tuple[str, int]:
    """``resnet`` and the N of ``resnet_Nblocks``, ``unet`` and its levels, or ``johnson`` and 5.

    Raises:
        UserError: ``netG`` has another form.
    """
    if netG == "johnson":
        return "johnson", 5
    if netG in ("unet_128", "unet_256"):
        return "unet", {"unet_128": 7, "unet_256": 8}[netG]
    match = re.fullmatch(r"resnet_([1-9][0-9]?)blocks", netG)
    if not match:
        raise UserError(
            f"--netG {netG}: not resnet_Nblocks with N to 99, unet_128, unet_256 or johnson"
        )
    return "resnet", int(match[1])


def profile_window(text: str) -> tuple[int, int]:
    """The first step and the one behind the last of ``--profile_steps`` A:B.

    Raises:
        UserError: ``text`` has another form, or names no step.
    """
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--profile_steps {text}: not A:B with A below B; 50:60 is steps 50 to 59")
    return int(match[1]), int(match[2])
