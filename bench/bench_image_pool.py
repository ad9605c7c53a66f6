"""The image pool's query: the kernel against PyTorch, with a full pool.

    pytest bench/bench_image_pool.py --benchmark-only
    python -m bench.bench_image_pool OUT.json [--providers NAME ...] [--commit HASH]

Rows as in bench_instance_norm.py. Every other image is swapped. ``native`` is a loop over the
images whose draws the host knows. The error, also that of the pool, must be 0.
"""

from collections.abc import Callable
from itertools import cycle

import torch

from bench.op_bench import (
    DEVICE,
    Forward,
    ImageCase,
    OpBench,
    compiled,
    random_image,
    relative_error,
)
from fastcyclegan.kernels.image_pool import image_pool
from fastcyclegan.kernels.philox import POOL_A, philox_ref, randint

# Batches at 256 px, and 201 MB beyond the L2 cache.
CASES = [*(ImageCase((n, 3, 256, 256)) for n in (1, 2, 8)), ImageCase((512, 3, 256, 256))]
SMALL = [ImageCase((2, 3, 64, 64))]
CAPACITY, SEED, BATCHES = 50, 0, 60
Query = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def numbers(n: int) -> torch.Tensor:
    """(BATCHES, n) image numbers, of which every second one is swapped."""
    drawn = torch.arange(8 * BATCHES * n + 1000)
    swaps = philox_ref(SEED, POOL_A, drawn)[0] >= 2**31
    half = BATCHES * n // 2
    return torch.stack([drawn[swaps][:half], drawn[~swaps][:half]], 1).view(BATCHES, n)


def loop(pool, images, swaps: list[bool], slots: list[int]) -> torch.Tensor:
    """The query as a loop, for a full pool."""
    results = []
    for image, swap, slot in zip(images, swaps, slots, strict=True):
        results.append(pool[slot].clone() if swap else image)
        if swap:
            pool[slot].copy_(image)
    return torch.stack(results).contiguous(memory_format=torch.channels_last)


def queries(case: ImageCase, provider: str) -> list[Query]:
    """One function of (pool, images) for each of BATCHES batches."""
    rows = numbers(case.shape[0])
    if provider == "native":
        coin, drawn, *_ = philox_ref(SEED, POOL_A, rows)
        draws = zip((coin >= 2**31).tolist(), randint(drawn, CAPACITY).tolist(), strict=True)
        return [lambda *tensors, d=d: loop(*tensors, *d) for d in draws]
    count, seed = (torch.tensor(value, device=DEVICE) for value in (CAPACITY, SEED))
    impl = "triton" if provider == "triton" else "ref"

    def query(pool, images, number) -> torch.Tensor:
        return image_pool(pool, count, images, seed, POOL_A, number, impl=impl)

    query = compiled(query, provider)
    return [lambda *tensors, n=n: query(*tensors, n) for n in rows.to(DEVICE)]


def tensors(case: ImageCase) -> tuple[torch.Tensor, torch.Tensor]:
    """A full pool and a batch."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    n, *shape = case.shape
    return tuple(random_image((k, *shape), case.dtype, draw) for k in (CAPACITY, n))


def run(case: ImageCase, provider: str) -> Forward:
    state = tensors(case)
    asked = queries(case, provider)
    turn = cycle(asked)

    def check() -> dict[str, float]:
        found, truth = tensors(case), tensors(case)
        expected = queries(case, "ref")
        pairs = [(f(*found), g(*truth)) for f, g in zip(asked[:4], expected[:4], strict=True)]
        worst = max(relative_error(y, true.double()) for y, true in pairs)
        return {"y": worst, "pool": relative_error(found[0], truth[0].double())}

    return Forward(lambda: next(turn)(*state), check)


def counted_bytes(case: ImageCase, mode: str) -> int:
    """Kept: the image and the result. Swapped: those, and the slot read and written."""
    n, c, h, w = case.shape
    return 3 * n * c * h * w * case.dtype.itemsize


OP = OpBench("image_pool", run, counted_bytes, CASES, SMALL, modes=("fwd",), largest_error=0.0)


@OP.parametrize
def bench_image_pool(benchmark, row) -> None:
    OP.bench(benchmark, row)


if __name__ == "__main__":
    OP.main()
