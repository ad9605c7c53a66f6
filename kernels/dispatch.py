"""What every op's file needs: Triton where there is one, and the choice of implementation.

``impl=None`` is decided by the device alone: Triton on CUDA, the plain PyTorch reference elsewhere.
The kernels also run on a CPU under Triton's interpreter, which TRITON_INTERPRET=1 chooses before
triton is imported; there ``impl="triton"`` has to be asked for.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

IMPLS = ("ref", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What a kernel can count in an int32, pixels for one, with the few blocks that it goes beyond them.
LARGEST = 2**31 - 2**16
PLAIN_ARGS = ("N", "tiles", "tile_pixels", "chunk", "capacity", "stream")


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``, or the function unchanged where triton is not installed.

    The arguments of PLAIN_ARGS only say how work is divided, or take a value or two that change
    nothing about the code: no kernel is compiled for their sake.
    """
    if triton is None:
        return function
    plain = [name for name in inspect.signature(function).parameters if name in PLAIN_ARGS]
    return triton.jit(function, do_not_specialize=plain)


@jit
def _empty_kernel():
    pass


def interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter instead of on a GPU."""
    return triton is not None and not isinstance(_empty_kernel, triton.JITFunction)


def use_triton(x: torch.Tensor, impl: str | None) -> bool:
    """Whether the kernels compute an op of ``x``, by its device and the caller's ``impl``.

    Raises:
        ValueError: an unknown ``impl``, or kernels asked for on a CPU outside the interpreter.
        RuntimeError: kernels are needed and triton is not installed.
    """
    if impl is not None and impl not in IMPLS:
        raise ValueError(f"impl={impl!r}: not one of None, {', '.join(map(repr, IMPLS))}")
    if impl == "ref" or (impl is None and x.device.type != "cuda"):
        return False
    if triton is None:
        raise RuntimeError('triton is not installed: install it, or use impl="ref"')
    if x.device.type not in ("cuda", "meta") and not interpreted():
        raise ValueError(
            f'impl="triton" needs a CUDA tensor, got one on {x.device}: use impl="ref", or set '
            "TRITON_INTERPRET=1 before the first import to try the kernels on a CPU"
        )
    return True


def check_rank(x: torch.Tensor, name: str) -> None:
    """Raise ValueError unless ``x`` has four dimensions."""
    if x.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, not (N, C, H, W)")


def check_image(x: torch.Tensor, name: str) -> None:
    """Raise unless ``x`` is (N, C, H, W) in a dtype of DTYPES: ValueError or TypeError."""
    check_rank(x, name)
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(
            f'{name} is {x.dtype}; the kernels take {names}: cast it, or use impl="ref"'
        )


def check_channels_last(x: torch.Tensor, name: str) -> None:
    """Raise ValueError unless ``x`` (N, C, H, W) is channels_last; one without elements is."""
    if x.numel() and not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"{name} is not channels_last: use "
            f'{name}.contiguous(memory_format=torch.channels_last) or impl="ref"'
        )


def check_per_channel(x: torch.Tensor, tensors: dict[str, torch.Tensor | None]) -> None:
    """Raise ValueError unless each that is not None is (C,), contiguous and beside ``x``."""
    shape = x.shape[1:2]
    for name, t in tensors.items():
        if t is not None and t.shape != shape:
            raise ValueError(
                f"{name} must be ({shape[0]},), one value per channel of x, got {tuple(t.shape)}"
            )
        if t is not None and not t.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {t.stride()}: use .contiguous(), or "
                'impl="ref"'
            )
        if t is not None and t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, x on {x.device}")


def accumulator(dtype: torch.dtype) -> Any:
    """The Triton dtype that kernels compute in: fp64 for fp64, fp32 for all others."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The torch dtype of :func:`accumulator`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def on_device(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of ``x`` current for a launch: Triton launches on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n`` >= 1."""
    return 1 << (n - 1).bit_length()
