"""junyanz's own CycleGANModel, driven from the checkout that FASTCYCLEGAN_PEER_JZ names."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

VARIABLE = "FASTCYCLEGAN_PEER_JZ"


def checkout() -> Path | None:
    """The peer's folder, or None where the variable names none."""
    root = os.environ.get(VARIABLE)
    found = bool(root) and (Path(root) / "models" / "cycle_gan_model.py").is_file()
    return Path(root).resolve() if found else None


def cyclegan_model(device: torch.device, **changed: Any) -> Any:
    """The peer's model for training, with its own defaults except for ``changed`` options.

    Raises:
        FileNotFoundError: there is no checkout.
    """
    root = checkout()
    if root is None:
        raise FileNotFoundError(f"{VARIABLE} names no checkout of the peer")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    defaults = {
        "gpu_ids": [0] if device.type == "cuda" else [],
        "isTrain": True,
        "checkpoints_dir": ".",
        "name": "peer",
        "preprocess": "resize_and_crop",
        "direction": "AtoB",
        "input_nc": 3,
        "output_nc": 3,
        "ngf": 64,
        "ndf": 64,
        "netG": "resnet_9blocks",
        "netD": "basic",
        "n_layers_D": 3,
        "norm": "instance",
        "no_dropout": True,
        "init_type": "normal",
        "init_gain": 0.02,
        "pool_size": 50,
        "gan_mode": "lsgan",
        "lr": 0.0002,
        "beta1": 0.5,
        "lambda_A": 10.0,
        "lambda_B": 10.0,
        "lambda_identity": 0.5,
    }
    module = importlib.import_module("models.cycle_gan_model")
    with contextlib.redirect_stdout(io.StringIO()):
        return module.CycleGANModel(SimpleNamespace(**(defaults | changed)))
