"""What makes two runs the same run, and where one was made."""

import hashlib
import json
import platform
from dataclasses import asdict

import torch

from fastcyclegan.config import TrainConfig, has_batch_norm

# What is computed: a run is continued with the same values of these.
IDENTITY = (
    *("model", "direction", "input_nc", "output_nc", "netG", "netD", "n_layers_D", "ngf"),
    *("ndf", "nz", "ema", "norm", "padding", "johnson_padding", "dropout", "upsample"),
    *("residual_relu", "pixel_range", "init_type", "init_gain", "init_from", "preprocess"),
    *("load_size", "crop_size", "no_flip", "serial_batches", "max_dataset_size", "min_size"),
    *("alpha", "batch_size", "fit_schedule", "lr", "beta1", "lr_policy", "lr_decay_iters"),
    *("updates", "gan_mode", "pool_size", "lambda_A", "lambda_B", "lambda_identity"),
    *("precision", "seed"),
)
# These say how long, where and how often: a run may be continued with other values.
FREE = (
    *("name", "checkpoints_dir", "dataroot", "dataroot_A", "dataroot_B", "preset"),
    *("list_presets", "device", "dist_timeout", "data_on", "num_threads", "compile"),
    *("compile_scope", "cuda_graph", "twin_streams", "impl", "deterministic", "resume"),
    *("print_freq", "display_freq", "save_every_steps", "save_epoch_freq", "keep"),
    *("milestone_epochs", "eval_every", "eval_metric", "eval_features", "eval_architecture"),
    *("max_skips", "resume_force", "max_bad", "dry_run", "nvtx", "profile", "profile_steps"),
    "track",
)
# And these are either, see identity.
DEPENDS = ("n_epochs", "n_epochs_decay", "steps", "sync_bn")


def identity(
    config: TrainConfig, data_digest: str, precision: str, world: int = 1
) -> dict[str, object]:
    """The options that decide what is computed, by name, with the digest of the data.

    Args:
        config: the options.
        data_digest: of the images.
        precision: what ``--precision`` came to.
        world: processes of the training. Any number computes the same, but for batch norms without
            ``--sync_bn``, of which each has its own images.
    """
    chosen = {name: value for name, value in asdict(config).items() if name in IDENTITY}
    if config.fit_schedule:  # where they do not say how long, but how the learning rate falls
        chosen |= {name: getattr(config, name) for name in ("steps", "n_epochs", "n_epochs_decay")}
    if world > 1 and has_batch_norm(config) and not config.sync_bn:
        chosen["sync_bn"] = f"off in {world} processes"
    return chosen | {"precision": precision, "data": data_digest}


def digest_of(options: dict[str, object]) -> str:
    """SHA-256 of ``options``, in hexadecimal."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def machine(device: torch.device) -> dict[str, str]:
    """The hardware and the versions that a run was made with, for config.json."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": (torch.version.cuda or "") if cuda else "",
    }
