"""The one place where networks are compiled, and where it shows that a compiler is missing."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable
from importlib.util import find_spec

import torch

from fastcyclegan.errors import UserError
from fastcyclegan.models import Network
from fastcyclegan.steps.model import Model

SCOPES = ("block", "step")
# Shapes that one piece is compiled for: batches of one and of joined sets, each block of a
# generator that shaves its images. Dynamo's own limit is 8.
SHAPES = 64


def compile_model(model: Model, scope: str) -> None:
    """Compile what ``fused_step`` computes with; it happens when a part is first called.

    Args:
        model: changed in place; what it names in ``uncompiled`` stays as it is.
        scope: ``block`` compiles each kind of piece of the networks once, ``step`` the losses of
            each phase as a whole: faster steps for a longer compilation.
    """
    # on a CPU NumPy is faster for so few numbers
    for draw in model.DRAWS if model.device.type == "cuda" else ():
        whole = torch.compile(getattr(model, draw), fullgraph=True, dynamic=False)
        setattr(model, draw, whole)
    if scope == "step":
        # dynamic shapes fail in Inductor 2.13 (TypeError in get_fill_order)
        for phase in (name for name in model.PHASES if name not in model.uncompiled):
            whole = torch.compile(getattr(model, phase), fullgraph=True, dynamic=False)
            setattr(model, phase, whole)
        return
    trained = (name for name in model.weights if name not in model.uncompiled)
    compile_networks(model.networks[name] for name in trained)


def compile_networks(networks: Iterable[Network]) -> None:
    """Replace the pieces of ``networks`` by compiled ones; networks of one kind share them.

    Compilation itself happens when a piece is first called with a new shape.
    """
    torch._dynamo.config.recompile_limit = SHAPES
    compiled: dict[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] = {}
    for net in networks:
        for piece in net.PIECES.values():
            if piece not in compiled:
                compiled[piece] = torch.compile(piece, fullgraph=True, dynamic=False)
        net.pieces = {name: compiled[piece] for name, piece in net.PIECES.items()}


def require_kernels(device: torch.device, otherwise: str) -> None:
    """Raise UserError, which offers ``otherwise``, if the networks' kernels cannot be compiled."""
    lack = missing_compiler(device) if device.type == "cuda" else None
    if lack:
        raise UserError(f"--device {device}: {lack}, which the kernels need; or use {otherwise}")


def missing_compiler(device: torch.device) -> str | None:
    """Why Inductor cannot compile for ``device``, or None if it can: a trial, under a second.

    It needs a compiler of C++ on a CPU, of C (for Triton's launchers) on a GPU, and Python's
    headers.
    """
    if device.type == "cuda" and not find_spec("triton"):
        return "triton is not installed"
    named = os.environ.get("CXX" if device.type == "cpu" else "CC", "")
    usual = ("g++", "clang++") if device.type == "cpu" else ("gcc", "clang", "cc")
    compiler = shlex.split(named) or [name for name in usual if shutil.which(name)][:1]
    if not compiler:
        return f"no {'C++' if device.type == 'cpu' else 'C'} compiler found (install {usual[0]})"
    trial = [*compiler, "-fsyntax-only", "-x", "c++" if device.type == "cpu" else "c"]
    trial += ["-I", sysconfig.get_path("include"), "-"]
    try:
        subprocess.run(trial, input=b"#include <Python.h>\n", capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{compiler[0]} cannot compile with Python's headers (install python3-dev)"
    return None
