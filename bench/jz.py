"""junyanz's own CycleGANModel, driven from the checkout that FASTCYCLEGAN_PEER_JZ names."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
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


def step_of(
    device: torch.device, A: torch.Tensor, B: torch.Tensor, **changed: Any
) -> Callable[[], torch.Tensor]:
    """The peer's training step on images ``A`` and ``B``, (N, 3, H, W); it returns a loss."""
    model = cyclegan_model(device, **changed)
    model.set_input({"A": A, "B": B, "A_paths": [], "B_paths": []})

    def step() -> torch.Tensor:
        model.optimize_parameters()
        return model.loss_G

    return step


class OwnProcess:
    """:func:`step_of` in a process of its own, as its users run it.

    Our own training tells the C library to keep freed memory, which would speed up the peer too.
    """

    def __init__(self, *arguments: Any, **changed: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._here, there = spawn.Pipe()
        given = (there, arguments, changed)
        self._process = spawn.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        there.close()
        self._here.recv()

    def __call__(self) -> torch.Tensor:
        """Take a step; returns its loss, which may not be a number, on the CPU."""
        self._here.send(None)
        return torch.tensor(self._here.recv())


def _serve(connection: Connection, arguments: tuple, changed: dict[str, Any]) -> None:
    step = step_of(*arguments, **changed)
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            connection.recv()
            connection.send(step().item())
