"""Options: one frozen dataclass per command, and the parser built from its fields.

Nothing here imports torch, so that ``--help`` and a wrong flag answer at once. Names and defaults
are those of junyanz/pytorch-CycleGAN-and-pix2pix wherever it has the option; ``-`` and ``_`` are
the same in a flag.
"""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from fastcyclegan.errors import UserError
from fastcyclegan.jz_options import MAPPED, REFUSED_MODELS, REMOVED, REMOVED_FROM_TRANSLATE

Config = TypeVar("Config")


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field that is a command-line option.

    ``metadata`` may hold ``choices``, ``low`` and ``high`` (inclusive bounds), ``above`` (exclusive
    lower bound) and ``refused`` (values of JZ that are not among the choices, each with a reason).
    """
    return field(default=default, metadata={"help": text, **metadata})


def required(text: str) -> Any:
    """A dataclass field that is an option without a default."""
    return field(metadata={"help": text})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help lists the options")


def parse(cls: type[Config], prog: str, description: str, argv: Sequence[str]) -> Config:
    """Build ``cls`` from command-line words.

    Args:
        cls: a frozen dataclass whose fields were made by :func:`option` or :func:`required`.
        prog: the command as a user types it, for ``--help``.
        description: one line for ``--help``.
        argv: the words behind the command.

    Raises:
        UserError: an unknown or removed option, a missing one, or a value out of range.
    """
    config, _ = parse_explicit(cls, prog, description, argv)
    return config


def parse_explicit(
    cls: type[Config], prog: str, description: str, argv: Sequence[str]
) -> tuple[Config, frozenset[str]]:
    """As :func:`parse`, and the names of the options that ``argv`` set itself."""
    usage = f"{prog} [options]"
    parser = _Parser(prog=prog, usage=usage, description=description, allow_abbrev=False)
    for item in fields(cls):
        _add(parser, item)
    names = [item.name for item in fields(cls)]
    mapped = getattr(cls, "MAPPED", {})
    words = _mapped([_normal(word, [*names, *mapped]) for word in argv], mapped)
    given, extra = parser.parse_known_args(words)
    if extra:
        raise UserError(_unknown(extra[0], names, getattr(cls, "REMOVED", {})))
    for item in fields(cls):
        if item.default is MISSING and item.name not in given:
            raise UserError(f"--{item.name} is missing: {item.metadata['help']}")
    config = cls(**{item.name: getattr(given, item.name, item.default) for item in fields(cls)})
    check_ranges(config)
    return config, frozenset(vars(given))


def check_ranges(config: Any) -> None:
    """Raise UserError for the first value of ``config`` outside its field's choices or bounds."""
    for item in fields(config):
        value, rule = getattr(config, item.name), item.metadata
        if value is None:
            continue
        if value == "":
            raise UserError(f"--{item.name} '': must not be empty")
        if value in rule.get("refused", {}):
            raise UserError(f"--{item.name} {value}: {rule['refused'][value]}")
        if "choices" in rule and value not in rule["choices"]:
            allowed = ", ".join(map(str, rule["choices"]))
            near = _did_you_mean(str(value), [str(c) for c in rule["choices"]])
            raise UserError(f"--{item.name} {value}: not one of {allowed}{near}")
        if isinstance(value, float) and value != value:
            raise UserError(f"--{item.name} {value}: not a number")
        if "above" in rule and not value > rule["above"]:
            raise UserError(f"--{item.name} {value}: must be above {rule['above']}")
        if "low" in rule and value < rule["low"]:
            raise UserError(f"--{item.name} {value}: must be at least {rule['low']}")
        if "high" in rule and value > rule["high"]:
            raise UserError(f"--{item.name} {value}: must be at most {rule['high']}")


def _add(parser: argparse.ArgumentParser, item: Field) -> None:
    flag, text = f"--{item.name}", item.metadata["help"].replace("%", "%%")
    if item.type is bool:
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if item.default not in (MISSING, None):
        text += f" (default: {item.default})"
    kind = _base_type(item.type)
    choices = item.metadata.get("choices")
    metavar = "{" + ",".join(map(str, choices)) + "}" if choices else None
    parser.add_argument(
        flag,
        type=kind,
        metavar=metavar or {int: "N", float: "X", str: "TEXT"}[kind],
        default=argparse.SUPPRESS,
        help=text,
    )


def _base_type(annotation: Any) -> type:
    options = [t for t in getattr(annotation, "__args__", ()) if t is not type(None)]
    return options[0] if options else annotation


def _normal(word: str, names: Sequence[str]) -> str:
    """``--load-size=3`` as ``--load_size=3``: only the flag's own dashes are touched."""
    flag, equals, value = word.partition("=")
    if flag.startswith("--") and flag[2:].replace("-", "_") in names:
        flag = "--" + flag[2:].replace("-", "_")
    return flag + equals + value


def _mapped(words: Sequence[str], mapped: Mapping[str, Sequence[str]]) -> list[str]:
    """``words`` with JZ's flags in ``mapped`` replaced by what says the same here."""
    if {"--dropout", "--no_dropout"} <= set(words):
        raise UserError("--dropout and --no_dropout: choose one")
    flags = {f"--{name}": words_here for name, words_here in mapped.items()}
    return [new for word in words for new in flags.get(word, [word])]


def _unknown(word: str, names: Sequence[str], removed: Mapping[str, str]) -> str:
    if not word.startswith("-"):
        return f"{word!r} stands alone: every value needs its flag; --help lists them"
    name = word.partition("=")[0].lstrip("-")
    if name.replace("-", "_") in removed:
        return f"--{name} is not an option here: {removed[name.replace('-', '_')]}"
    return f"--{name}: unknown option{_did_you_mean(name, names, '--')}; --help lists all"


def _did_you_mean(word: str, names: Sequence[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), names, n=1, cutoff=0.6)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``python -m fastcyclegan.train``."""

    MAPPED: ClassVar[Mapping[str, Sequence[str]]] = MAPPED
    REMOVED: ClassVar[Mapping[str, str]] = REMOVED

    dataroot: str | None = option(None, "folder with trainA, trainB and perhaps testA, testB")
    dataroot_A: str | None = option(None, "folder of domain A's images, instead of --dataroot")
    dataroot_B: str | None = option(None, "folder of domain B's images, instead of --dataroot")
    name: str | None = option(None, "run name; without it the next number, or the run to continue")
    checkpoints_dir: str = option("./checkpoints", "where run folders are made")
    preset: str | None = option(
        None, "a set of defaults; paper, or small on a CPU without data", choices=["paper", "small"]
    )
    model: str = option(
        "cycle_gan", "what is trained", choices=["cycle_gan"], refused=REFUSED_MODELS
    )
    direction: str = option("AtoB", "which domain is called A", choices=["AtoB", "BtoA"])
    input_nc: int = option(3, "channels of domain A: 1 grey, 3 RGB, 4 RGBA", choices=[1, 3, 4])
    output_nc: int = option(3, "channels of domain B: 1 grey, 3 RGB, 4 RGBA", choices=[1, 3, 4])
    netG: str = option("resnet_9blocks", "generator: resnet_Nblocks, any N, unet_128 or unet_256")
    netD: str = option(
        "basic", "discriminator: PatchGAN, or per pixel", choices=["basic", "n_layers", "pixel"]
    )
    n_layers_D: int = option(3, "layers of --netD n_layers", low=1, high=8)
    ngf: int = option(64, "generator width", low=1, high=1024)
    ndf: int = option(64, "discriminator width", low=1, high=1024)
    norm: str = option("instance", "normalisation", choices=["instance", "batch", "none"])
    padding: str = option("reflect", "of residual blocks", choices=["reflect", "replicate", "zero"])
    dropout: bool = option(False, "drop half of the features inside the generators' blocks")
    upsample: str = option(
        "transpose", "resize: no transposed convolutions", choices=["transpose", "resize"]
    )
    init_type: str = option(
        "normal", "how weights begin", choices=["normal", "xavier", "kaiming", "orthogonal"]
    )
    init_gain: float = option(0.02, "scale of the initialisation", above=0.0, high=100.0)
    init_from: str | None = option(None, "start from latest_net_*.pth, or a run, in this folder")
    preprocess: str = option(
        "resize_and_crop",
        "how images are brought to size",
        choices=["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"],
    )
    load_size: int = option(286, "pixels: images are scaled to this", low=4, high=16384)
    crop_size: int = option(256, "pixels: then cropped to this", low=16, high=16384)
    no_flip: bool = option(False, "do not mirror images at random")
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
    fit_schedule: bool = option(False, "compress the epochs of the schedule into --steps")
    lr: float = option(0.0002, "learning rate of Adam", above=0.0, high=1.0)
    beta1: float = option(0.5, "Adam's first momentum", low=0.0, high=0.999999)
    lr_policy: str = option(
        "linear", "how the rate falls", choices=["linear", "step", "plateau", "cosine"]
    )
    lr_decay_iters: int = option(50, "epochs between two cuts of --lr_policy step", low=1)
    gan_mode: str = option("lsgan", "GAN loss", choices=["lsgan", "vanilla", "wgangp"])
    pool_size: int = option(50, "fakes kept to train the discriminators", low=0, high=100000)
    lambda_A: float = option(10.0, "weight of A -> B -> A", low=0.0, high=1e6)
    lambda_B: float = option(10.0, "weight of B -> A -> B", low=0.0, high=1e6)
    lambda_identity: float = option(0.5, "weight of the identity loss; 0: off", low=0.0, high=1e6)
    compile: bool = option(False, "compile the networks with torch.compile")
    compile_scope: str = option(
        "block", "what --compile compiles at once; step takes minutes", choices=["block", "step"]
    )
    impl: str = option(
        "fused", "the step: fused, or reference, plain and slow", choices=["fused", "reference"]
    )
    precision: str = option(
        "auto", "bf16 where the device has it, else fp32", choices=["auto", "fp32", "tf32", "bf16"]
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    seed: int = option(0, "of everything random", low=0, high=2**32 - 1)
    deterministic: bool = option(False, "only deterministic operations")
    resume: str = option("auto", "auto continues an unfinished run", choices=["auto", "none"])
    print_freq: int = option(100, "images between two lines of losses", low=1)
    display_freq: int = option(400, "images between two previews; at most 100 are made", low=1)
    save_every_steps: int | None = option(None, "steps between checkpoints, not epochs", low=1)
    save_epoch_freq: int = option(5, "epochs between checkpoints", low=1)
    keep: int = option(3, "checkpoints kept", low=1)


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
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    alpha: str = option("white", "what lies under transparency", choices=["white", "black", "drop"])
    overwrite: bool = option(False, "replace images that exist at the output")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "netG": "resnet_6blocks",
        "ngf": 32,
        "ndf": 32,
        "load_size": 64,
        "crop_size": 64,
        "steps": 700,
        "fit_schedule": True,
        "print_freq": 20,
        "display_freq": 100,
        "save_every_steps": 350,
    },
}


def apply_preset(config: TrainConfig, explicit: frozenset[str]) -> TrainConfig:
    """``config`` with the values of its preset, except those in ``explicit``."""
    chosen = PRESETS.get(config.preset or "paper", {})
    return replace(config, **{k: v for k, v in chosen.items() if k not in explicit})


def generator_depth(netG: str) -> tuple[str, int]:
    """``resnet`` and the N of ``resnet_Nblocks``, or ``unet`` and its levels.

    Raises:
        UserError: ``netG`` has another form.
    """
    if netG in ("unet_128", "unet_256"):
        return "unet", {"unet_128": 7, "unet_256": 8}[netG]
    match = re.fullmatch(r"resnet_([1-9][0-9]?)blocks", netG)
    if not match:
        raise UserError(f"--netG {netG}: not resnet_Nblocks with N to 99, unet_128 or unet_256")
    return "resnet", int(match[1])
