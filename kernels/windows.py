"""Which image each place of a batch gets, and which window and flip: drawn where the images lie.

For the image with running number i, with four words w of Philox from (seed, stream, i)::

    index = order[i // L - first_epoch, i % L] % M      by a permutation of its epoch, if there is
            w0 M / 2**32                                else with replacement
    top   = w1 (height[index] - h + 1) / 2**32,  left = w2 (width[index] - w + 1) / 2**32
    flip  = w3 < 2**31, if images are flipped

for the M images of a domain, in epochs of L, rounded down. The kernel reads everything that changes
through pointers, so that a CUDA graph which captured it draws anew where ``number`` moved on.

One program computes 128 images; bytes do not matter, one launch instead of some eighty does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcyclegan.kernels.dispatch import jit, on_device, tl, use_triton
from fastcyclegan.kernels.philox import philox_ref, randint

WINDOWS = ("index", "offset", "width", "top", "left", "flip")
BLOCK = 128


def draw_windows_ref(
    number: Tensor,
    seed: Tensor,
    table: Tensor,
    size: tuple[int, int] | None,
    order: Tensor | None,
    first_epoch: Tensor,
    stream: int,
    flip: bool,
) -> Tensor:
    """In plain PyTorch; the arguments are those of :func:`draw_windows`. Returns (6, N) int64."""
    drawn, r_top, r_left, r_flip = philox_ref(seed, stream, number)
    images = table.shape[1]
    if order is None:
        index = randint(drawn, images)
    else:
        epoch = number // order.shape[1] - first_epoch
        index = order[epoch, number % order.shape[1]] % images
    offset, height, width = table[:, index]
    h, w = size or (height, width)
    top, left = randint(r_top, height - h + 1), randint(r_left, width - w + 1)
    mirrored = (r_flip < 2**31).to(torch.int64) * flip
    return torch.stack([index, offset, width, top, left, mirrored])


@jit
def _randint(r, n):
    return ((r.to(tl.uint64) * n.to(tl.uint64)) >> 32).to(tl.int64)


@jit
def _draw_windows_kernel(
    number_ptr,  # (N,) int64
    seed_ptr,  # () int64
    table_ptr,  # (3, M) int64: offset, height, width
    order_ptr,  # (E, L) int64, or none
    first_epoch_ptr,  # () int64
    y_ptr,  # (6, N) int64, in the order of WINDOWS
    M,
    L,
    h,
    w,
    N,
    stream,
    HAS_ORDER: tl.constexpr,
    WHOLE: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N
    number = tl.load(number_ptr + offs, mask=mask, other=0)
    key = (stream.to(tl.uint64) << 32) | (tl.load(seed_ptr).to(tl.uint64) & 0xFFFFFFFF)
    low, high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    zero = low * 0
    drawn, r_top, r_left, r_flip = tl.philox(key, low, high, zero, zero)
    images = zero.to(tl.int64) + M
    if HAS_ORDER:
        epoch = number // L - tl.load(first_epoch_ptr)
        index = tl.load(order_ptr + epoch * L + number % L, mask=mask, other=0) % M
    else:
        index = _randint(drawn, images)
    offset = tl.load(table_ptr + index, mask=mask, other=0)
    height = tl.load(table_ptr + M + index, mask=mask, other=0)
    width = tl.load(table_ptr + 2 * M + index, mask=mask, other=0)
    top, left, flip = images * 0, images * 0, images * 0
    if not WHOLE:
        top = _randint(r_top, height - h + 1)
        left = _randint(r_left, width - w + 1)
    if FLIP:
        flip = (r_flip < 0x80000000).to(tl.int64)
    y_ptrs = y_ptr + offs
    tl.store(y_ptrs, index, mask=mask)
    tl.store(y_ptrs + N, offset, mask=mask)
    tl.store(y_ptrs + 2 * N, width, mask=mask)
    tl.store(y_ptrs + 3 * N, top, mask=mask)
    tl.store(y_ptrs + 4 * N, left, mask=mask)
    tl.store(y_ptrs + 5 * N, flip, mask=mask)


def _check(number, seed, table, order, first_epoch) -> None:
    given = {"number": (number, 1), "seed": (seed, 0), "table": (table, 2)}
    given |= {"first_epoch": (first_epoch, 0)} | ({} if order is None else {"order": (order, 2)})
    for name, (t, rank) in given.items():
        if t.dtype != torch.int64:
            raise TypeError(f'{name} is {t.dtype}; the kernel takes int64: use impl="ref"')
        if t.dim() != rank or not t.is_contiguous():
            raise ValueError(
                f"{name} must have {rank} dimensions and be contiguous, got {tuple(t.shape)} with "
                f'strides {t.stride()}: use impl="ref"'
            )
        if t.device != number.device:
            raise ValueError(f"{name} is on {t.device}, number is on {number.device}")
    if table.shape[0] != 3 or not table.shape[1]:
        raise ValueError(f'table is {tuple(table.shape)}: want (3, M) with M >= 1, or impl="ref"')


def _output(number: Tensor) -> Tensor:
    return torch.empty((len(WINDOWS), len(number)), dtype=torch.int64, device=number.device)


@torch.library.custom_op("fastcyclegan::draw_windows", mutates_args=())
def _draw_windows(
    number: Tensor,
    seed: Tensor,
    table: Tensor,
    order: Tensor | None,
    first_epoch: Tensor,
    h: int,
    w: int,
    stream: int,
    flip: bool,
) -> Tensor:
    _check(number, seed, table, order, first_epoch)
    y, n = _output(number), len(number)
    if not n:
        return y
    length = 1 if order is None else order.shape[1]
    pointers = number, seed, table, table if order is None else order, first_epoch, y
    options = {"HAS_ORDER": order is not None, "WHOLE": h == 0, "FLIP": flip}
    with on_device(y):
        _draw_windows_kernel[(-(-n // BLOCK),)](
            *pointers, table.shape[1], length, h, w, n, stream, **options, BLOCK=BLOCK, num_warps=4
        )
    return y


@_draw_windows.register_fake
def _(number, seed, table, order, first_epoch, h, w, stream, flip):
    _check(number, seed, table, order, first_epoch)
    return _output(number)


def draw_windows(
    number: Tensor,
    seed: Tensor,
    table: Tensor,
    size: tuple[int, int] | None,
    order: Tensor | None,
    first_epoch: Tensor,
    *,
    stream: int,
    flip: bool = True,
    impl: str | None = None,
) -> Tensor:
    """The image, window and flip of each place of a batch, in one kernel and without a host sync.

    Args:
        number: (N,) int64 in [0, 2**63), the running number of each place.
        seed: 0-D int64; its low 32 bits are used.
        table: (3, M) int64, contiguous: offset, height and width of each image, as ``augment`` has
            them.
        size: (h, w) of the windows, no larger than any image, which is not checked; None for whole
            images.
        order: (E, L) int64, contiguous: a permutation of 0 .. L-1 for each of E epochs, which hold
            all of ``number``; None to draw with replacement.
        first_epoch: 0-D int64, that of the first row of ``order``.
        stream: which random stream, as in ``philox``.
        flip: mirror half of the images.
        impl: ``ref``, ``triton``, or None: Triton on CUDA, the reference elsewhere.

    Returns:
        (6, N) int64: index, and offset, width, top, left and flip as ``augment`` takes them.

    Raises:
        ValueError: a shape, layout, device or ``impl`` that is not supported.
        TypeError: a dtype that the kernel lacks.
        RuntimeError: the kernel is needed and triton is not installed.
    """
    if use_triton(number, impl):
        h, w = size or (0, 0)
        return _draw_windows(number, seed, table, order, first_epoch, h, w, stream, flip)
    return draw_windows_ref(number, seed, table, size, order, first_epoch, stream, flip)
