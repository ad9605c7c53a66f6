"""Presets: named sets of options, as data. Any flag overrides what its preset says."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastcyclegan.errors import UserError

Config = TypeVar("Config")

ABOUT: dict[str, str] = {
    "paper": "CycleGAN as published, 256 px; the defaults",
    "paper128": "CycleGAN as published for 128 px: six blocks",
    "article": "hardikbansal's CycleGAN as its article has it; docs/article.md",
    "johnson": "CycleGAN with the generator of fast style transfer",
    "small": "64 px, minutes on two CPU cores; the default on a CPU without data",
    "dcgan": "images from noise, 64 px, as pytorch/examples has it; --model dcgan says the same",
    "dcgan_small": "32 px, minutes on two CPU cores; the default of --model dcgan there",
}

_DCGAN = {
    "model": "dcgan",
    "preprocess": "resize_and_center_crop",
    "load_size": 64,
    "crop_size": 64,
    "no_flip": True,
    "batch_size": 128,
    "n_epochs": 25,
    "n_epochs_decay": 0,
    "print_freq": 6400,
    "display_freq": 12800,
    "save_epoch_freq": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "netG": "resnet_9blocks",
        "ngf": 64,
        "ndf": 64,
        "load_size": 286,
        "crop_size": 256,
        "batch_size": 1,
        "n_epochs": 100,
        "n_epochs_decay": 100,
        "lambda_A": 10.0,
        "lambda_B": 10.0,
        "lambda_identity": 0.5,
        "pool_size": 50,
    },
    "paper128": {
        "netG": "resnet_6blocks",
        "ngf": 64,
        "ndf": 64,
        "load_size": 143,
        "crop_size": 128,
        "batch_size": 1,
        "n_epochs": 100,
        "n_epochs_decay": 100,
        "lambda_A": 10.0,
        "lambda_B": 10.0,
        "lambda_identity": 0.5,
        "pool_size": 50,
    },
    "article": {
        "updates": "sequential",
        "netG": "resnet_6blocks",
        "ngf": 64,
        "ndf": 64,
        "load_size": 256,
        "crop_size": 256,
        "no_flip": True,
        "batch_size": 1,
        "n_epochs": 100,
        "n_epochs_decay": 100,
        "lr_policy": "article",
        "lambda_A": 10.0,
        "lambda_B": 10.0,
        "lambda_identity": 0.0,
        "pool_size": 50,
    },
    "johnson": {
        "netG": "johnson",
        "ngf": 32,
        "johnson_padding": "start",
        "pixel_range": "tanh255",
    },
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
    "dcgan": _DCGAN,
    "dcgan_small": _DCGAN
    | {
        "ngf": 32,
        "ndf": 32,
        "load_size": 32,
        "crop_size": 32,
        "batch_size": 64,
        "steps": 1200,
        "fit_schedule": True,
        "save_every_steps": 600,
    },
}

# What an option's value means for the default of others.
IMPLIED: dict[tuple[str, str], dict[str, Any]] = {
    ("netG", "johnson"): {"ngf": 32},
    ("model", "dcgan"): _DCGAN,
}


def apply_preset(config: Config, explicit: frozenset[str]) -> Config:
    """``config`` with the values of its preset, and what these imply, except those in ``explicit``.

    A DCGAN's images are scaled to the size that they are then cropped to, unless told otherwise.

    Raises:
        UserError: ``explicit`` names another system than the preset is for.
    """
    chosen = PRESETS.get(config.preset or "", {})
    model = chosen.get("model", "cycle_gan")
    if config.preset and "model" in explicit and config.model != model:
        raise UserError(
            f"--preset {config.preset} is for --model {model}, not {config.model}: leave one out"
        )
    config = replace(config, **_without(chosen, explicit))
    for (name, value), defaults in IMPLIED.items():
        if getattr(config, name) == value:
            config = replace(config, **_without(defaults, explicit | chosen.keys()))
    if config.model == "dcgan" and "load_size" not in explicit:
        config = replace(config, load_size=config.crop_size)
    return config


def set_by_preset(config: Any, explicit: frozenset[str]) -> frozenset[str]:
    """The options that have the value of a preset which the user chose, and no flag beside it."""
    chosen = PRESETS[config.preset] if config.preset and "preset" in explicit else {}
    return frozenset(chosen) - explicit


def told(config: Any, explicit: frozenset[str]) -> str:
    """One line on what the preset of ``config`` sets, and what is set instead.

    ``config`` is what the training goes by: what of the preset does not hold there is flags', or
    follows from them, as the size of a DCGAN's images or the networks of ``init_from``.
    """
    held = {name: getattr(config, name) for name in PRESETS[config.preset]}
    sets = {k: v for k, v in PRESETS[config.preset].items() if k not in explicit and held[k] == v}
    kept = {name: value for name, value in held.items() if name in explicit}
    follows = _without(held, sets.keys() | kept.keys())
    line = f"--preset {config.preset} sets {_listed(sets) or 'nothing'}"
    line += f"; flags set {_listed(kept)}" if kept else ""
    return f"{line}; from flags follows {_listed(follows)}" if follows else line


def blame(message: str, config: Any, explicit: frozenset[str]) -> str:
    """``message``, with a hint at the options in it that are a preset's and not the user's."""
    chosen = _without(PRESETS.get(config.preset or "", {}), explicit)
    words = message.replace(":", " ").replace(",", " ").split()
    named = {name: value for name, value in chosen.items() if f"--{name}" in words}
    if not named:
        return message
    return f"{message} (--preset {config.preset} sets {_listed(named)}: give your own)"


def listing() -> str:
    """All presets for people: name, what it is, what it sets."""
    lines = []
    for name, about in ABOUT.items():
        lines += [f"{name}: {about}", f"    {_listed(PRESETS[name])}"]
    return "\n".join(lines)


def _without(values: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(name if value is True else f"{name} {value}" for name, value in values.items())
