"""What a training needs before its first step: images, networks, and options that go together."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch

from fastcyclegan.config import TrainConfig, has_batch_norm
from fastcyclegan.device import resolve_precision
from fastcyclegan.distributed import Ranks
from fastcyclegan.errors import UserError
from fastcyclegan.memory import keep_freed_memory
from fastcyclegan.profiling import check_profiling
from fastcyclegan.runs.identity import identity
from fastcyclegan.steps.compilation import require_kernels
from fastcyclegan.steps.schedule import Schedule
from fastcyclegan.systems import System, make_system

Options = dict[str, object]
# Options of which each process may have its own.
_OWN_AFFAIRS = ("dataroot", "dataroot_A", "dataroot_B", "eval_features")
_OWN_AFFAIRS += ("checkpoints_dir", "num_threads")


def prepare(
    config: TrainConfig, device: torch.device, say: Callable[[str], None], ranks: Ranks
) -> tuple[System, Schedule, Options]:
    """What is trained, for how long, and what makes this run what it is.

    Raises:
        UserError, Stop: what the options name cannot be used, or differs between ``ranks``.
    """
    make = partial(_prepare, config, device, say, ranks)
    found = ranks.in_turn(make) if _is_toy(config) else ranks.together(make)
    ranks.require_alike(_facts(config, found[-1]))
    return found


def require_same_options(config: TrainConfig, device: torch.device, ranks: Ranks) -> None:
    """Raise SharedStop unless all processes will ask each other the same, in the same order."""
    facts = _options_of_all(config)
    facts |= {"source of images": "toy images" if _is_toy(config) else "a folder"}
    ranks.require_alike(facts | {"kind of device": device.type})


def sharing(config: TrainConfig, ranks: Ranks) -> Iterator[str]:
    """What each of several processes does, in one line each."""
    if not ranks.many:
        return
    each = config.batch_size // ranks.world
    images = "1 image" if each == 1 else f"{each} images"
    yield f"{ranks.world} processes, each with {images} of every batch of {config.batch_size}"
    if has_batch_norm(config) and not config.sync_bn:
        yield (
            f"batch norms see the {images} of their process alone, which is not what one process "
            f"computes of {config.batch_size}; --sync_bn is"
        )


def _prepare(
    config: TrainConfig, device: torch.device, say: Callable[[str], None], ranks: Ranks
) -> tuple[System, Schedule, Options]:
    check_device(config, device)
    if config.batch_size % ranks.world:
        raise UserError(
            f"--batch_size {config.batch_size} cannot be divided among {ranks.world} processes: it "
            f"is of all of them together; use a multiple of {ranks.world}"
        )
    for name in ("dropout", "twin_streams"):
        if getattr(config, name) and ranks.many:
            raise UserError(f"--{name} is for one process: leave it out, or torchrun")
    precision = resolve_precision(config.precision, device)
    if config.deterministic:
        # cuBLAS is deterministic with a workspace of its own, and torch insists on it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
    system = make_system(config, device, precision, say, ranks)
    for net in system.model.networks.values():
        net.sync_bn = config.sync_bn and ranks.many
    schedule = Schedule.of(config, system.sampler.epoch_length)
    check_steps(config, system, schedule)
    options = identity(config, system.images.digest, precision.name, ranks.world)
    return system, schedule, options


def _facts(config: TrainConfig, options: Options) -> dict[str, object]:
    """What must be the same in all processes."""
    found = {"--precision": options["precision"], "set of images": options["data"]}
    return _options_of_all(config) | found


def _options_of_all(config: TrainConfig) -> dict[str, object]:
    """Without folders, which may have other names on other machines."""
    return {f"--{name}": x for name, x in asdict(config).items() if name not in _OWN_AFFAIRS}


def _is_toy(config: TrainConfig) -> bool:
    return (config.dataroot, config.dataroot_A, config.dataroot_B) == (None, None, None)


def check_steps(config: TrainConfig, system: System, schedule: Schedule) -> None:
    """Raise UserError if the steps cannot be captured or profiled as the options ask."""
    if config.cuda_graph == "on" and system.uncapturable:
        raise UserError(f"--cuda_graph on: {system.uncapturable}; leave it out")
    check_profiling(config, system.device, schedule.total_steps)


def check_device(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError if an option asks for what ``device`` cannot do."""
    if config.cuda_graph == "on" and device.type != "cuda":
        raise UserError(f"--cuda_graph on: {device} has no CUDA graphs; leave it out")
    joint = config.model == "cycle_gan" and config.updates == "joint"
    if config.twin_streams and not (joint and device.type == "cuda"):
        raise UserError("--twin_streams is for CycleGAN's joint updates on a GPU; leave it out")
    if config.impl == "fused":
        require_kernels(device, "--impl reference")
        return
    reflects = config.model == "cycle_gan" and config.netG.startswith("resnet")
    if config.deterministic and device.type == "cuda" and reflects:
        raise UserError(
            "--deterministic: on a GPU torch has no deterministic gradient of the reflection "
            "padding that --impl reference uses; leave one of the two out, or use --device cpu"
        )
