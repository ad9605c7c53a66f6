"""pytorch/examples' own DCGAN, driven from the checkout that FASTCYCLEGAN_PEER_EXAMPLES names.

Its main.py is one script that trains when it is run, so its parts are taken out of its syntax tree:
the networks, the optimisers, and the body of the training loop as it stands there, up to the print.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import torch
from torch import nn, optim

VARIABLE = "FASTCYCLEGAN_PEER_EXAMPLES"
_DEFINED = ("weights_init", "Generator", "Discriminator")
_ASSIGNED = ("criterion", "real_label", "fake_label", "optimizerD", "optimizerG")


def checkout() -> Path | None:
    """The peer's folder, or None where the variable names none."""
    root = os.environ.get(VARIABLE)
    found = bool(root) and (Path(root) / "dcgan" / "main.py").is_file()
    return Path(root).resolve() if found else None


class ExamplesDCGAN:
    """The peer's networks, optimisers and step.

    Args:
        device: to train on.
        options: of its main.py; those not given have its defaults.

    Attributes:
        netG, netD: its modules, with fresh weights.
        names: the variables of its script, after a step also errD, errG, D_x, D_G_z1 and D_G_z2.

    Raises:
        FileNotFoundError: there is no checkout.
    """

    def __init__(self, device: torch.device, **options: Any) -> None:
        root = checkout()
        if root is None:
            raise FileNotFoundError(f"{VARIABLE} names no checkout of pytorch/examples")
        tree = ast.parse((root / "dcgan" / "main.py").read_text(encoding="utf-8"))
        defaults = {"nz": 100, "ngf": 64, "ndf": 64, "nc": 3, "ngpu": 1}
        defaults |= {"opt": SimpleNamespace(lr=0.0002, beta1=0.5)}
        self._torch = _Torch()
        self.names: dict[str, Any] = {"torch": self._torch, "nn": nn, "optim": optim}
        self.names["device"] = device
        self.names |= defaults | options
        _run(self.names, [x for x in tree.body if getattr(x, "name", None) in _DEFINED])
        for name, kind in (("netG", "Generator"), ("netD", "Discriminator")):
            net = self.names[kind](self.names["ngpu"]).to(device)
            self.names[name] = net.apply(self.names["weights_init"])
        _run(self.names, [x for x in tree.body if _assigned(x) in _ASSIGNED])
        self.netG, self.netD = self.names["netG"], self.names["netD"]
        self._step = _code(_loop_body(tree))

    def step(self, real: torch.Tensor, noise: torch.Tensor | None = None) -> dict[str, float]:
        """One pass through the body of its loop.

        Args:
            real: (N, nc, H, W) in [-1, 1].
            noise: (N, nz, 1, 1), what its torch.randn returns; None for what it does return.

        Returns:
            What it prints, under the names D, G, D_x, D_G_z1 and D_G_z2.
        """
        self.names["data"], self._torch.noise = [real], noise
        exec(self._step, self.names)
        shown = {"D": "errD", "G": "errG"} | {x: x for x in ("D_x", "D_G_z1", "D_G_z2")}
        found = {ours: self.names[theirs] for ours, theirs in shown.items()}
        return {k: x.item() if isinstance(x, torch.Tensor) else x for k, x in found.items()}


class _Torch:
    """torch, with a randn that returns given numbers."""

    noise: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, *shape: int, **options: Any) -> torch.Tensor:
        return torch.randn(*shape, **options) if self.noise is None else self.noise


def _assigned(node: ast.stmt) -> str | None:
    is_name = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    return node.targets[0].id if is_name else None


def _loop_body(tree: ast.Module) -> list[ast.stmt]:
    """The statements of the inner loop before it prints."""
    (epochs,) = [x for x in tree.body if isinstance(x, ast.For)]
    (batches,) = [x for x in epochs.body if isinstance(x, ast.For)]
    prints = [
        i
        for i, x in enumerate(batches.body)
        if isinstance(x, ast.Expr) and ast.unparse(x).startswith("print(")
    ]
    return batches.body[: prints[0]]


def _code(body: list[ast.stmt]) -> CodeType:
    return compile(ast.Module(body, type_ignores=[]), "dcgan/main.py", "exec")


def _run(names: dict[str, Any], body: list[ast.stmt]) -> None:
    exec(_code(body), names)
