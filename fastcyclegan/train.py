"""Train a CycleGAN, or a DCGAN: ``python -m fastcyclegan.train --dataroot FOLDER --compile``."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastcyclegan import command
from fastcyclegan.config import (
    DCGAN_SIZES,
    ONLY_OF,
    TrainConfig,
    generator_depth,
    has_batch_norm,
    profile_window,
)
from fastcyclegan.errors import UserError
from fastcyclegan.launch import Launch
from fastcyclegan.options import check_ranges, parse_explicit
from fastcyclegan.presets import apply_preset, blame, listing, told
from fastcyclegan.runs.folder import require_place, valid_name
from fastcyclegan.scores import OF_FEATURES, OF_PAIRS
from fastcyclegan.trackers import find_tracker

if TYPE_CHECKING:
    from fastcyclegan.distributed import Ranks
    from fastcyclegan.runs.terminal import Terminal

PROG = "python -m fastcyclegan.train"


def main(argv: Sequence[str]) -> int:
    """Parse ``argv``, train, and return the exit code."""
    launch, timeout = Launch.of(), TrainConfig.dist_timeout
    try:
        config, _ = _options(argv, launch)
    except UserError:
        if launch.world == 1:
            raise
    else:
        timeout = config.dist_timeout
        if config.list_presets:
            print(listing())
            return command.DONE
    from fastcyclegan.meeting import joined
    from fastcyclegan.runs.terminal import terminal

    with (
        joined(launch, timeout) as ranks,
        terminal(sys.stdout, quiet=not ranks.first) as console,
    ):
        # once more, as all must know of it if the options of one are bad
        config, explicit = ranks.together(partial(_options, argv, launch))
        return _train(config, explicit, launch, ranks, console)


def _options(argv: Sequence[str], launch: Launch) -> tuple[TrainConfig, frozenset[str]]:
    """The options as given, and the names of those that ``argv`` set. Raises UserError."""
    config, explicit = parse_explicit(TrainConfig, PROG, __doc__.partition(":")[0] + ".", argv)
    if not config.list_presets:
        _resolve(config, explicit)
    if config.dry_run and launch.world > 1:
        raise UserError("--dry_run is about one process: leave torchrun out")
    return config, explicit


def _train(
    config: TrainConfig,
    explicit: frozenset[str],
    launch: Launch,
    ranks: "Ranks",
    console: "Terminal",
) -> int:
    from fastcyclegan.device import own_device
    from fastcyclegan.dry_run import dry_run
    from fastcyclegan.preparation import require_same_options
    from fastcyclegan.training import train

    device = ranks.together(partial(own_device, config.device, launch))
    require_same_options(config, device, ranks)
    toy = (config.dataroot, config.dataroot_A, config.dataroot_B) == (None, None, None)
    if toy and config.preset is None and device.type == "cpu":
        model = _resolve(config, explicit).model
        config = replace(config, preset={"cycle_gan": "small", "dcgan": "dcgan_small"}[model])
        console.print(
            f"no --dataroot and no GPU: using --preset {config.preset} (--help lists all options)"
        )
    config = ranks.together(partial(_resolve, config, explicit))
    adopted = ""
    if config.init_from:
        from fastcyclegan.systems import SYSTEMS

        adopt = partial(SYSTEMS[config.model].adopt, config, explicit)
        config, adopted = ranks.together(adopt)
    if config.preset:
        console.print(told(config, explicit), soft_wrap=True)
    if adopted:
        console.print(adopted, soft_wrap=True)
        ranks.together(partial(check, config))
    if config.dry_run:
        return dry_run(config, device, console)
    return train(config, device, console, ranks)


def _resolve(config: TrainConfig, explicit: frozenset[str]) -> TrainConfig:
    """``config`` with its preset, checked. Raises UserError, which says what the preset had set."""
    config = apply_preset(config, explicit)
    for system, names in ONLY_OF.items():
        for name in sorted(names & explicit) if system != config.model else ():
            raise UserError(f"--{name}: --model {config.model} has none; leave it out")
    try:
        check(config)
    except UserError as problem:
        raise UserError(blame(str(problem), config, explicit)) from None
    return config


def check(config: TrainConfig) -> None:
    """Raise UserError for options that contradict each other."""
    check_ranges(config)
    _CHECKS[config.model](config)
    if config.name is not None:
        valid_name(config.name)
    if config.resume_force and config.name is None:
        raise UserError("--resume_force needs --name: the run to continue")
    require_place(Path(config.checkpoints_dir))
    scaled = config.preprocess.endswith("_crop")
    if scaled and config.load_size < config.crop_size:
        raise UserError(
            f"--load_size {config.load_size} is smaller than --crop_size {config.crop_size}"
        )
    if config.sync_bn and not has_batch_norm(config):
        raise UserError(f"--sync_bn: with --norm {config.norm} there is none; leave it out")
    if config.sync_bn and config.gan_mode == "wgangp":
        raise UserError("--sync_bn: --gan_mode wgangp would differentiate it twice; choose one")
    if config.fit_schedule and config.steps is None:
        raise UserError("--fit_schedule needs --steps: the number of steps to fit into")
    if config.n_epochs + config.n_epochs_decay == 0:
        raise UserError("--n_epochs 0 and --n_epochs_decay 0: nothing to train")
    if config.compile_scope != "block" and not config.compile:
        raise UserError(f"--compile_scope {config.compile_scope} needs --compile")
    if config.impl == "reference" and config.compile:
        raise UserError("--impl reference is the plain path: it cannot be combined with --compile")
    _check_judging(config)
    if config.profile_steps is not None:
        profile_window(config.profile_steps)
    if config.track:
        find_tracker(config.track)
    if config.nvtx and config.profile:
        raise UserError(
            f"--nvtx is for Nsight, --profile {config.profile} records by itself: choose one"
        )


def _check_judging(config: TrainConfig) -> None:
    for name in ("eval_metric", "eval_features"):
        if getattr(config, name) is not None and config.eval_every is None:
            raise UserError(f"--{name} needs --eval_every: how often")
    if config.eval_architecture and not config.eval_features:
        raise UserError("--eval_architecture needs --eval_features: the file of its weights")
    if config.eval_metric in OF_FEATURES and not config.eval_features:
        raise UserError(f"--eval_metric {config.eval_metric} needs --eval_features")
    if config.eval_metric in OF_PAIRS and config.model == "dcgan":
        raise UserError(f"--eval_metric {config.eval_metric}: a DCGAN's images have no truth")


# What only some generators have, with the value that asks for nothing, and which have it.
_PARTIAL = {
    "upsample": ("transpose", ("resnet",)),
    "padding": ("reflect", ("resnet",)),
    "residual_relu": (False, ("resnet",)),
    "johnson_padding": ("start", ("johnson",)),
    "dropout": (False, ("resnet", "unet")),
}


def _check_cyclegan(config: TrainConfig) -> None:
    if config.lambda_identity > 0 and config.input_nc != config.output_nc:
        raise UserError(
            f"--input_nc {config.input_nc} and --output_nc {config.output_nc} differ: the identity "
            "loss needs --lambda_identity 0"
        )
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


def _check_dcgan(config: TrainConfig) -> None:
    if config.crop_size not in DCGAN_SIZES:
        *others, last = DCGAN_SIZES
        raise UserError(
            f"--crop_size {config.crop_size}: a DCGAN makes images of "
            f"{', '.join(map(str, others))} or {last} pixels"
        )
    if not config.preprocess.endswith("crop"):
        raise UserError(
            f"--preprocess {config.preprocess}: a DCGAN needs images of one size; use one that "
            "ends in crop"
        )
    if config.lr_policy == "plateau":
        raise UserError("--lr_policy plateau: no loss of a DCGAN is meant to fall; use linear")


_CHECKS = {"cycle_gan": _check_cyclegan, "dcgan": _check_dcgan}


if __name__ == "__main__":
    command.leave(command.run(main))
