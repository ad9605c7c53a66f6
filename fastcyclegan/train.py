"""Train a CycleGAN: ``python -m fastcyclegan.train --dataroot FOLDER --compile``."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastcyclegan import command
from fastcyclegan.config import TrainConfig, generator_depth, profile_window
from fastcyclegan.errors import UserError
from fastcyclegan.options import check_ranges, parse_explicit
from fastcyclegan.presets import apply_preset, blame, listing, told
from fastcyclegan.runs.folder import require_place, valid_name

PROG = "python -m fastcyclegan.train"


def main(argv: Sequence[str]) -> int:
    """Parse ``argv``, train, and return the exit code."""
    config, explicit = parse_explicit(TrainConfig, PROG, __doc__.partition(":")[0] + ".", argv)
    if config.list_presets:
        print(listing())
        return command.DONE
    _resolve(config, explicit)
    from rich.console import Console

    from fastcyclegan.device import resolve_device
    from fastcyclegan.training import train

    console = Console(highlight=False, markup=False)
    device = resolve_device(config.device)
    toy = (config.dataroot, config.dataroot_A, config.dataroot_B) == (None, None, None)
    if toy and config.preset is None and device.type == "cpu":
        config = replace(config, preset="small")
        console.print("no --dataroot and no GPU: using --preset small (--help lists all options)")
    if config.preset:
        console.print(told(config, explicit), soft_wrap=True)
    config = _resolve(config, explicit)
    if config.init_from:
        from fastcyclegan.steps.initial import adopt

        config, adopted = adopt(config, explicit)
        console.print(adopted, soft_wrap=True)
        check(config)
    return train(config, device, console)


def _resolve(config: TrainConfig, explicit: frozenset[str]) -> TrainConfig:
    """``config`` with its preset, checked. Raises UserError, which says what the preset had set."""
    config = apply_preset(config, explicit)
    try:
        check(config)
    except UserError as problem:
        raise UserError(blame(str(problem), config, explicit)) from None
    return config


def check(config: TrainConfig) -> None:
    """Raise UserError for options that contradict each other."""
    check_ranges(config)
    _check_generator(config)
    if config.name is not None:
        valid_name(config.name)
    if config.resume_force and config.name is None:
        raise UserError("--resume_force needs --name: the run to continue")
    require_place(Path(config.checkpoints_dir))
    scaled = config.preprocess in ("resize_and_crop", "scale_width_and_crop")
    if scaled and config.load_size < config.crop_size:
        raise UserError(
            f"--load_size {config.load_size} is smaller than --crop_size {config.crop_size}"
        )
    if config.fit_schedule and config.steps is None:
        raise UserError("--fit_schedule needs --steps: the number of steps to fit into")
    if config.n_epochs + config.n_epochs_decay == 0:
        raise UserError("--n_epochs 0 and --n_epochs_decay 0: nothing to train")
    if config.lambda_identity > 0 and config.input_nc != config.output_nc:
        raise UserError(
            f"--input_nc {config.input_nc} and --output_nc {config.output_nc} differ: the identity "
            "loss needs --lambda_identity 0"
        )
    if config.compile_scope != "block" and not config.compile:
        raise UserError(f"--compile_scope {config.compile_scope} needs --compile")
    if config.impl == "reference" and config.compile:
        raise UserError("--impl reference is the plain path: it cannot be combined with --compile")
    if config.profile_steps is not None:
        profile_window(config.profile_steps)
    if config.nvtx and config.profile:
        raise UserError(
            f"--nvtx is for Nsight, --profile {config.profile} records by itself: choose one"
        )


# What only some generators have, with the value that asks for nothing, and which have it.
_PARTIAL = {
    "upsample": ("transpose", ("resnet",)),
    "padding": ("reflect", ("resnet",)),
    "residual_relu": (False, ("resnet",)),
    "johnson_padding": ("start", ("johnson",)),
    "dropout": (False, ("resnet", "unet")),
}


def _check_generator(config: TrainConfig) -> None:
    family, depth = generator_depth(config.netG)
    multiple = 2**depth if family == "unet" else 4
    # previews are squares of crop_size even where the training images are not
    if config.crop_size % multiple:
        raise UserError(
            f"--crop_size {config.crop_size}: must be a multiple of {multiple} for {config.netG}"
        )
    for name, (default, families) in _PARTIAL.items():
        value = getattr(config, name)
        if value != default and family not in families:
            shown = f"--{name}" if value is True else f"--{name} {value}"
            raise UserError(f"{shown}: {config.netG} has none; leave it out")


if __name__ == "__main__":
    sys.exit(command.run(main))
