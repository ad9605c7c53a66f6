"""Train a CycleGAN: ``python -m fastcyclegan.train --dataroot FOLDER --compile``."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from fastcyclegan import command
from fastcyclegan.config import (
    TrainConfig,
    apply_preset,
    block_count,
    check_ranges,
    parse_explicit,
)
from fastcyclegan.errors import UserError

PROG = "python -m fastcyclegan.train"


def main(argv: Sequence[str]) -> int:
    """Parse ``argv``, train, and return the exit code."""
    config, explicit = parse_explicit(TrainConfig, PROG, __doc__.partition(":")[0] + ".", argv)
    check(config)
    from rich.console import Console

    from fastcyclegan.device import resolve_device
    from fastcyclegan.training import train

    console = Console(highlight=False, markup=False, soft_wrap=True)
    device = resolve_device(config.device)
    toy = not (config.dataroot or config.dataroot_A or config.dataroot_B)
    if toy and config.preset is None and device.type == "cpu":
        config = replace(config, preset="small")
        console.print(f"no --dataroot and no GPU: using --preset small ({PROG} --help for more)")
    config = apply_preset(config, explicit)
    check(config)
    return train(config, device, console)


def check(config: TrainConfig) -> None:
    """Raise UserError for options that contradict each other."""
    check_ranges(config)
    block_count(config.netG)
    if config.fit_schedule and config.steps is None:
        raise UserError("--fit_schedule needs --steps: the number of steps to fit into")
    if config.n_epochs + config.n_epochs_decay == 0:
        raise UserError("--n_epochs 0 and --n_epochs_decay 0: nothing to train")
    if config.preprocess.endswith("crop") and config.crop_size % 4:
        raise UserError(f"--crop_size {config.crop_size}: must be a multiple of 4")
    if config.lambda_identity > 0 and config.input_nc != config.output_nc:
        raise UserError(
            f"--input_nc {config.input_nc} and --output_nc {config.output_nc} differ: the identity "
            "loss needs --lambda_identity 0"
        )
    if config.impl == "reference" and config.compile:
        raise UserError("--impl reference is the plain path: it cannot be combined with --compile")


if __name__ == "__main__":
    sys.exit(command.run(main))
