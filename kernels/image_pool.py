"""The image pool: a history of generated images that the discriminators are shown.

For each image of a batch, in order, with capacity K:

- fewer than K stored: store it and return it;
- else with probability one half: return the image in a uniformly drawn slot and put the new one
  in its place;
- else return the new image and store nothing.

One launch computes a whole batch as if its images came one after the other. Every program draws for
all of them, by Philox from (seed, stream, image number) as ``philox_ref`` does. Where several write
the same place, the program of the first hands out what was stored there and stores what the last
one brings; the others hand out the image of the one before them. So no two programs touch the same
memory of the pool, and their order does not matter.

A query can be undone: what a swap handed out is what it overwrote, and a place that was free held
zeros.

Layout: channels_last. Bytes for one image: itself or the slot read, the result written; where it is
stored, the image read and the slot written as well. Undoing reads and writes what was stored, or
nothing.
"""

from __future__ import annotations

import torch

from fastcyclegan.kernels.dispatch import (
    LARGEST,
    check_image,
    check_rank,
    jit,
    next_power_of_2,
    on_device,
    tl,
    use_triton,
)
from fastcyclegan.kernels.philox import philox_ref, randint


def image_pool_ref(
    pool: torch.Tensor,
    count: torch.Tensor,
    images: torch.Tensor,
    swap: torch.Tensor,
    slot: torch.Tensor,
) -> torch.Tensor:
    """Query the pool with a batch, without a host sync; ``pool`` and ``count`` change in place.

    Args:
        pool: (K, C, H, W), K >= 1.
        count: 0-D int64, images stored so far.
        images: (N, C, H, W), dtype of ``pool``.
        swap: (N,) bool, the coin of each image.
        slot: (N,) int64 in [0, K), the slot of each image.

    Returns:
        (N, C, H, W), channels_last: for each image itself or the one it replaced.

    Source: Shrivastava et al. (2016), as used by Zhu et al., CycleGAN (2017).
    """
    if not len(images):
        return _output(images)
    capacity = pool.shape[0]
    results = []
    for image, coin, drawn in zip(images.split(1), swap.split(1), slot.split(1), strict=True):
        filling = count < capacity
        place = torch.where(filling, count, drawn)
        stored = pool.index_select(0, place)
        results.append(torch.where(coin & ~filling, stored, image))
        pool.index_copy_(0, place, torch.where(coin | filling, image, stored))
        count += filling
    return torch.cat(results).contiguous(memory_format=torch.channels_last)


def draw(
    seed: int | torch.Tensor, stream: int, number: torch.Tensor, capacity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The coin and the slot of each image, (N,) bool and (N,) int64 in [0, capacity)."""
    coin, drawn, *_ = philox_ref(seed, stream, number)
    return coin >= 2**31, randint(drawn, capacity)


def undo_image_pool_ref(
    pool: torch.Tensor,
    count: torch.Tensor,
    out: torch.Tensor,
    before: torch.Tensor,
    swap: torch.Tensor,
    slot: torch.Tensor,
    shut: torch.Tensor,
) -> None:
    """Undo a query that handed out ``out`` when ``before`` images were stored, where ``shut``.

    The arguments are those of :func:`undo_image_pool` and :func:`image_pool_ref`.
    """
    check_rank(out, "out")
    capacity = pool.shape[0]
    for k in reversed(range(len(out))):
        filling = before + k < capacity
        place = torch.where(filling, before + k, slot[k : k + 1])
        old = torch.where(filling, 0, out[k : k + 1])
        now = pool.index_select(0, place)
        pool.index_copy_(0, place, torch.where(shut & (filling | swap[k]), old, now))
    count.copy_(torch.where(shut, before, count))


@jit
def _decide(own, seed_ptr, number_ptr, stored, capacity, N, stream, BLOCK_N: tl.constexpr):
    """What becomes of image ``own`` of a batch, from the draws for all of them.

    Returns its place in the pool; whether it is the first to be stored there; the image before it
    that was, or -1; the last one; and whether it is swapped.
    """
    m = tl.arange(0, BLOCK_N)
    key = (stream.to(tl.uint64) << 32) | (tl.load(seed_ptr).to(tl.uint64) & 0xFFFFFFFF)
    number = tl.load(number_ptr + m, mask=m < N, other=0)
    low, high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    zero = low * 0
    coin, drawn, _, _ = tl.philox(key, low, high, zero, zero)
    slot = ((drawn.to(tl.uint64) * capacity.to(tl.uint64)) >> 32).to(tl.int64)
    filling = stored + m < capacity
    places = tl.where(filling, stored + m, slot)
    writes = (m < N) & (filling | (coin >= 0x80000000))
    place = tl.sum(tl.where(m == own, places, 0), 0)
    same = writes & (places == place)
    before = tl.max(tl.where(same & (m < own), m, -1), 0)
    last = tl.max(tl.where(same, m, -1), 0)
    written = tl.max((writes & (m == own)).to(tl.int32), 0) > 0
    return place, written & (before < 0), before, last, written & (stored + own >= capacity)


@jit
def _image_pool_kernel(
    pool_ptr,  # (capacity, C, H, W), channels_last; changed
    count_ptr,  # () int64: images stored, and from bit 32 on the programs that are done; changed
    images_ptr,  # (N, C, H, W), channels_last
    seed_ptr,  # () int64
    number_ptr,  # (N,) int64
    y_ptr,  # (N, C, H, W), channels_last
    elements,  # C * H * W
    capacity,
    N,
    stream,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    blocks = tl.cdiv(elements, BLOCK)
    own = pid // blocks
    stored = tl.load(count_ptr) & 0xFFFFFFFF
    place, first, before, last, swapped = _decide(
        own, seed_ptr, number_ptr, stored, capacity, N, stream, BLOCK_N
    )
    offs = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < elements
    place_ptrs = pool_ptr + place * elements + offs
    if swapped & first:
        y = tl.load(place_ptrs, mask=mask)
    else:
        source = tl.where(swapped, before, own).to(tl.int64)
        y = tl.load(images_ptr + source * elements + offs, mask=mask)
    tl.store(y_ptr + own.to(tl.int64) * elements + offs, y, mask=mask)
    # The old image is read by all threads before the new one overwrites it.
    tl.debug_barrier()
    if first:
        x = tl.load(images_ptr + last.to(tl.int64) * elements + offs, mask=mask)
        tl.store(place_ptrs, x, mask=mask)
    # While the pool fills, the last program to get here counts: all others have read the old count.
    if stored < capacity:
        done = tl.atomic_add(count_ptr, 1 << 32) >> 32
        if done == tl.num_programs(0) - 1:
            tl.store(count_ptr, tl.minimum(stored + N, capacity))


@jit
def _undo_image_pool_kernel(
    pool_ptr,  # (capacity, C, H, W), channels_last; changed
    count_ptr,  # () int64; changed
    out_ptr,  # (N, C, H, W), channels_last: what the query handed out
    before_ptr,  # () int64: images stored before it
    seed_ptr,  # () int64
    number_ptr,  # (N,) int64
    shut_ptr,  # () bool
    elements,
    capacity,
    N,
    stream,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if tl.load(shut_ptr) != 0:
        pid = tl.program_id(0)
        blocks = tl.cdiv(elements, BLOCK)
        own = pid // blocks
        stored = tl.load(before_ptr)
        place, first, _, _, swapped = _decide(
            own, seed_ptr, number_ptr, stored, capacity, N, stream, BLOCK_N
        )
        offs = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = (offs < elements) & first
        old = tl.load(out_ptr + own.to(tl.int64) * elements + offs, mask=mask & swapped, other=0.0)
        tl.store(pool_ptr + place * elements + offs, old, mask=mask)
        if pid == 0:
            tl.store(count_ptr, stored)


def _config(elements: int, itemsize: int, n: int) -> dict[str, int]:
    """Block size by the size of an image, the bytes of an element and the images of the batch."""
    # Loads of 16 bytes per thread: one where programs are few, else more, since each one draws.
    loads = 1 if n * elements * itemsize < 2**22 else 4
    block = loads * 4 * 32 * 16 // itemsize
    # Left to itself ptxas spills for batches of 16 and more, to fit one more block.
    return {"BLOCK": block, "BLOCK_N": next_power_of_2(n), "num_warps": 4, "maxnreg": 64}


def _check(pool, images, number, name: str = "images", **scalars: torch.Tensor) -> None:
    check_image(images, name)
    if pool.dim() != 4 or not len(pool) or pool.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"pool is {tuple(pool.shape)}: want (K, *{tuple(images.shape[1:])}) with K >= 1"
        )
    if pool.dtype != images.dtype:
        raise TypeError(
            f'{name} is {images.dtype}, pool {pool.dtype}: cast one of them, or use impl="ref"'
        )
    for which, t in (("pool", pool), (name, images)):
        if t.numel() and not t.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"{which} is not channels_last: use .contiguous(memory_format="
                'torch.channels_last) or impl="ref"'
            )
    for which, t in {"number": number, **scalars}.items():
        dtype = torch.bool if which == "shut" else torch.int64
        shape = tuple(images.shape[:1]) if which == "number" else ()
        if t.dtype != dtype or t.shape != shape or not t.is_contiguous():
            raise ValueError(
                f"{which} must be {dtype}, contiguous and of shape {shape}, got {t.dtype} "
                f'{tuple(t.shape)}: convert it, or use impl="ref"'
            )
    for which, t in {"pool": pool, "number": number, **scalars}.items():
        if t.device != images.device:
            raise ValueError(f"{which} is on {t.device}, {name} on {images.device}")
    if images[:1].numel() > LARGEST:
        raise ValueError(
            f'{tuple(images.shape)}: more than {LARGEST} values per image: use impl="ref"'
        )


def _output(images: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(images, memory_format=torch.channels_last)


def _launch(kernel, pool, images, stream: int, *pointers: torch.Tensor) -> None:
    """Both kernels take the pool, other tensors, and numbers that follow from a batch."""
    n, elements = len(images), images[0].numel()
    config = _config(elements, images.element_size(), n)
    grid = (n * -(-elements // config["BLOCK"]),)
    with on_device(images):
        kernel[grid](pool, *pointers, elements, len(pool), n, stream, **config)


@torch.library.custom_op("fastcyclegan::image_pool", mutates_args=("pool", "count"))
def _image_pool(
    pool: torch.Tensor,
    count: torch.Tensor,
    images: torch.Tensor,
    seed: torch.Tensor,
    number: torch.Tensor,
    stream: int,
) -> torch.Tensor:
    _check(pool, images, number, count=count, seed=seed)
    y = _output(images)
    if y.numel():
        _launch(_image_pool_kernel, pool, images, stream, count, images, seed, number, y)
    return y


@_image_pool.register_fake
def _(pool, count, images, seed, number, stream):
    _check(pool, images, number, count=count, seed=seed)
    return _output(images)


@torch.library.custom_op("fastcyclegan::undo_image_pool", mutates_args=("pool", "count"))
def _undo_image_pool(
    pool: torch.Tensor,
    count: torch.Tensor,
    out: torch.Tensor,
    before: torch.Tensor,
    seed: torch.Tensor,
    number: torch.Tensor,
    shut: torch.Tensor,
    stream: int,
) -> None:
    _check(pool, out, number, "out", count=count, before=before, seed=seed, shut=shut)
    if out.numel():
        pointers = (count, out, before, seed, number, shut)
        _launch(_undo_image_pool_kernel, pool, out, stream, *pointers)


@_undo_image_pool.register_fake
def _(pool, count, out, before, seed, number, shut, stream):
    _check(pool, out, number, "out", count=count, before=before, seed=seed, shut=shut)


def image_pool(
    pool: torch.Tensor,
    count: torch.Tensor,
    images: torch.Tensor,
    seed: torch.Tensor,
    stream: int,
    number: torch.Tensor,
    *,
    impl: str | None = None,
) -> torch.Tensor:
    """Query the pool with a batch; ``pool`` and ``count`` change in place, without a host sync.

    The draws depend on (seed, stream, number) alone, and all three are read on the device: a CUDA
    graph that captured the query draws anew where ``number`` changed between its replays.

    Args:
        pool: (K, C, H, W), K >= 1; for the kernel channels_last, fp32, bf16, fp16 or fp64.
        count: 0-D int64, images stored so far, at most K.
        images: (N, C, H, W), dtype of ``pool``; for the kernel channels_last. Their values, not
            their gradients, are used.
        seed: 0-D int64; its low 32 bits are used.
        stream: which random stream, as in ``philox``.
        number: (N,) int64 in [0, 2**63), the running number of each image.
        impl: ``ref``, ``triton``, or None: Triton on CUDA, the reference elsewhere.

    Returns:
        (N, C, H, W), channels_last, without gradient: each image itself or the one it replaced.

    Raises:
        ValueError: a layout, shape, device or ``impl`` that is not supported.
        TypeError: a dtype that the kernel lacks.
        RuntimeError: the kernel is needed and triton is not installed.
    """
    images = images.detach()
    if use_triton(images, impl):
        return _image_pool(pool, count, images, seed, number, stream)
    return image_pool_ref(pool, count, images, *draw(seed, stream, number, len(pool)))


@torch.no_grad()
def undo_image_pool(
    pool: torch.Tensor,
    count: torch.Tensor,
    out: torch.Tensor,
    before: torch.Tensor,
    seed: torch.Tensor,
    stream: int,
    number: torch.Tensor,
    shut: torch.Tensor,
    *,
    impl: str | None = None,
) -> None:
    """Undo a query where ``shut`` holds; ``pool`` and ``count`` change in place, no host sync.

    Args:
        pool, count, seed, stream, number: as the query was given them. Its free places held zeros
            and do so again.
        out: (N, C, H, W), what it handed out.
        before: 0-D int64, images stored before it.
        shut: 0-D bool.
        impl: as for :func:`image_pool`.

    Raises:
        As :func:`image_pool`.
    """
    if use_triton(out, impl):
        return _undo_image_pool(pool, count, out, before, seed, number, shut, stream)
    draws = draw(seed, stream, number, len(pool))
    return undo_image_pool_ref(pool, count, out, before, *draws, shut)
