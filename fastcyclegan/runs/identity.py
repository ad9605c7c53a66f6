"""What makes two runs the same run, and where one was made."""

import hashlib
import json
import platform
from dataclasses import asdict

import torch

from fastcyclegan.config import TrainConfig

# Options that say how long, where and how often, not what is computed: a run may be continued
# with other values of them.
_NOT_IDENTITY = frozenset(
    {
        "name",
        "checkpoints_dir",
        "dataroot",
        "dataroot_A",
        "dataroot_B",
        "preset",
        "list_presets",
        "n_epochs",
        "n_epochs_decay",
        "steps",
        "device",
        "dist_timeout",
        "sync_bn",
        "data_on",
        "num_threads",
        "compile",
        "compile_scope",
        "cuda_graph",
        "twin_streams",
        "impl",
        "deterministic",
        "resume",
        "print_freq",
        "display_freq",
        "save_every_steps",
        "save_epoch_freq",
        "keep",
        "milestone_epochs",
        "eval_every",
        "eval_metric",
        "eval_features",
        "eval_architecture",
        "max_skips",
        "resume_force",
        "max_bad",
        "dry_run",
        "nvtx",
        "profile",
        "profile_steps",
        "track",
    }
)


def identity(config: TrainConfig, data_digest: str, precision: str) -> dict[str, object]:
    """The options that decide what is computed, by name, with the digest of the data."""
    chosen = {k: v for k, v in asdict(config).items() if k not in _NOT_IDENTITY}
    if config.fit_schedule:
        chosen["steps"] = config.steps
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
