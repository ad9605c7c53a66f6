"""Philox-4x32-10: random numbers that are a pure function of (seed, stream, counter).

One round maps the counter words c and the key words k (all uint32) to
``(hi(M1*c2) ^ c1 ^ k0, lo(M1*c2), hi(M0*c0) ^ c3 ^ k1, lo(M0*c0))``; the key grows by W after each
of the ten rounds. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
The bits are those of ``tl.philox(seed | stream << 32, counter & 0xffffffff, counter >> 32, 0, 0)``.
There is no state to save: image number i draws the same numbers on every device, in every order.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

# One stream per use, so that two uses never share a number.
ORDER, SAMPLE_A, SAMPLE_B, POOL_A, POOL_B, MIX_A, MIX_B, NOISE, FIXED_NOISE = range(9)

_ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _mul_hi_lo(m: int, c: Tensor) -> tuple[Tensor, Tensor]:
    # In 16-bit halves: a full 32x32-bit product would overflow int64, which C++ leaves undefined.
    low = m * (c & 0xFFFF)
    mid = m * (c >> 16) + (low >> 16)
    return mid >> 16, (mid & 0xFFFF) << 16 | (low & 0xFFFF)


def philox_4x32(counter: Words, key: tuple[int | Tensor, int | Tensor]) -> Words:
    """Philox-4x32-10 itself.

    Args:
        counter: four int64 tensors of one shape, each value in [0, 2**32).
        key: two words in [0, 2**32), ints or int64 tensors that broadcast.

    Returns:
        Four int64 tensors of the (broadcast) shape, values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        hi0, lo0 = _mul_hi_lo(_M0, c0)
        hi1, lo1 = _mul_hi_lo(_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def philox_ref(seed: int | Tensor, stream: int | Tensor, counter: Tensor) -> Words:
    """Four random 32-bit words per counter value.

    Args:
        seed: any integer, or a 0-D int64 tensor; its low 32 bits are used.
        stream: one of ORDER .. FIXED_NOISE, or an int64 tensor that broadcasts with ``counter``.
        counter: int64 tensor of any shape and device, values in [0, 2**63).

    Returns:
        Four int64 tensors of the (broadcast) shape, values in [0, 2**32).
    """
    if type(counter) is Tensor and counter.device.type == "cpu" and not _traced():
        return _philox_numpy(seed & _MASK, stream, counter)
    zero = torch.zeros_like(counter)
    return philox_4x32((counter & _MASK, counter >> 32, zero, zero), (seed & _MASK, stream))


def _traced() -> bool:
    """Whether somebody follows PyTorch's operations, to record or to forbid them."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def _philox_numpy(seed: int | Tensor, stream: int | Tensor, counter: Tensor) -> Words:
    """:func:`philox_ref` where a call costs more than the few numbers that it computes."""
    low, half = np.uint64(_MASK), np.uint64(32)
    number = counter.numpy().astype(np.uint64)
    c0, c1 = number & low, number >> half
    c2 = c3 = np.zeros_like(number)
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in (seed, stream))
    for _ in range(_ROUNDS):
        p0, p1 = np.uint64(_M0) * c0, np.uint64(_M1) * c2
        c0, c1, c2, c3 = (
            (p1 >> half) ^ c1 ^ k0,
            p1 & low,
            (p0 >> half) ^ c3 ^ k1,
            p0 & low,
        )
        k0, k1 = (k0 + np.uint64(_W0)) & low, (k1 + np.uint64(_W1)) & low
    return tuple(torch.from_numpy(np.asarray(c).astype(np.int64)) for c in (c0, c1, c2, c3))


def uniform(r: Tensor) -> Tensor:
    """float32 in [0, 1) from random words: the upper 24 bits, so that every value is exact."""
    return (r >> 8).to(torch.float32) * 2.0**-24


def randint(r: Tensor, n: int | Tensor) -> Tensor:
    """int64 in [0, n) from random words; n < 2**31, an int or an int64 tensor that broadcasts."""
    return (r * n) >> 32


def normal_ref(seed: int, stream: int, number: Tensor, length: int) -> Tensor:
    """Rows of standard normal numbers, each a function of (seed, stream, its number) alone.

    Two words r, s give sqrt(-2 ln u) cos(2 pi v) and the same with sin, where u in (0, 1] and v in
    [0, 1) are their upper 24 bits. Source: Box and Muller (1958). Devices may differ in the last
    bits of the logarithm and the waves.

    Args:
        seed, stream: as for :func:`philox_ref`.
        number: (N,) int64, in [0, 2**63 / length).
        length: numbers per row.

    Returns:
        (N, length) float32, at most 5.8 in size.
    """
    blocks = -(-length // 4)
    counter = number.view(-1, 1) * blocks + torch.arange(blocks, device=number.device)
    words = philox_ref(seed, stream, counter)
    pairs = []
    for r, s in (words[:2], words[2:]):
        radius = torch.sqrt(-2 * torch.log(uniform(r) + 2.0**-24))
        angle = 2 * torch.pi * uniform(s)
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :length]
