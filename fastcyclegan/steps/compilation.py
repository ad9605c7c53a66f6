"""The one place where networks are compiled."""

import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec

import torch

from fastcyclegan.models import Network


def compile_networks(networks: Iterable[Network]) -> None:
    """Replace the pieces of ``networks`` by compiled ones; networks of one kind share them.

    Compilation itself happens when a piece is first called with a new shape.
    """
    compiled: dict[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] = {}
    for net in networks:
        for piece in net.PIECES.values():
            if piece not in compiled:
                # dynamic shapes fail in Inductor 2.13 (TypeError in get_fill_order)
                compiled[piece] = torch.compile(piece, fullgraph=True, dynamic=False)
        net.pieces = {name: compiled[piece] for name, piece in net.PIECES.items()}


def missing_compiler(device: torch.device) -> str | None:
    """Why Inductor cannot compile for ``device``, or None if it can."""
    if device.type == "cpu":
        from torch._inductor.config import cpp

        named = [cpp.cxx] if isinstance(cpp.cxx, str) else [c for c in cpp.cxx if c]
        if not any(shutil.which(compiler) for compiler in named):
            return "no C++ compiler found (install g++)"
        return None
    return None if find_spec("triton") else "triton is not installed"
