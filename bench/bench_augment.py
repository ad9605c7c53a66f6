"""Crop, flip and normalisation of a batch: the kernel against PyTorch.

    pytest bench/bench_augment.py --benchmark-only
    python -m bench.bench_augment OUT.json [--providers NAME ...] [--commit HASH]

Rows as in bench_instance_norm.py; the error is that of rounding. ``native`` is a loop over the
images whose windows the host knows.
"""

import torch
from torch.nn import functional as F

from bench.op_bench import DEVICE, Forward, ImageCase, OpBench, compiled, relative_error
from fastcyclegan.kernels.augment import augment, augment_ref

# Batches at 256 px out of images of 286 px, with the first layer's halo too, and 302 MB.
CASES = [
    *(ImageCase((n, 3, 256, 256)) for n in (1, 2, 8)),
    ImageCase((1, 3, 256, 256), dtype=torch.float32),
    ImageCase((8, 3, 256, 256), pad=3),
    ImageCase((512, 3, 256, 256)),
]
SMALL = [ImageCase((2, 3, 64, 64), dtype=torch.float32)]
MARGIN, IMAGES = 30, 64


def draw(case: ImageCase) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Pixels of IMAGES images, the plan (5, N) of a batch, and the size of its windows."""
    n, c, h, w = case.shape
    generator = torch.Generator().manual_seed(0)
    height, width = h + MARGIN, w + MARGIN
    rows = IMAGES * height * width
    pixels = torch.randint(0, 256, (rows, c), dtype=torch.uint8, generator=generator)

    def below(limit: int) -> torch.Tensor:
        return torch.randint(0, limit, (n,), generator=generator)

    offset = below(IMAGES) * height * width
    plan = [offset, torch.full((n,), width), below(MARGIN), below(MARGIN), below(2)]
    return pixels.to(DEVICE), torch.stack(plan), (h, w)


def loop(pixels, plan: list[list[int]], size, dtype, pad) -> torch.Tensor:
    """The batch as a loop over its images."""
    h, w = size
    windows = []
    for offset, width, top, left, flip in plan:
        image = pixels[offset : offset + (h + MARGIN) * width].view(h + MARGIN, width, -1)
        window = image[top : top + h, left : left + w]
        windows.append(window.flip(1) if flip else window)
    y = ((torch.stack(windows).float() - 127.5) / 127.5).to(dtype).permute(0, 3, 1, 2)
    return F.pad(y, (pad,) * 4, mode="reflect") if pad else y


def run(case: ImageCase, provider: str) -> Forward:
    pixels, plan, size = draw(case)
    of_host, rows = plan.T.tolist(), list(plan.to(DEVICE))
    around = {"pad": case.pad}

    def function(pixels, *rows) -> torch.Tensor:
        if provider == "native":
            return loop(pixels, of_host, size, case.dtype, case.pad)
        if provider == "triton":
            return augment(pixels, *rows, size, case.dtype, **around, impl="triton")
        return augment_ref(pixels, *rows, size, case.dtype, **around)

    function = compiled(function, provider)

    def check() -> dict[str, float]:
        truth = augment_ref(pixels, *rows, size, torch.float64, **around)
        return {"y": relative_error(function(pixels, *rows), truth)}

    return Forward(lambda: function(pixels, *rows), check)


def counted_bytes(case: ImageCase, mode: str) -> int:
    """One byte read for each value of a window, each value of the result written."""
    n, c, h, w = case.shape
    return n * c * (h * w + (h + 2 * case.pad) * (w + 2 * case.pad) * case.dtype.itemsize)


OP = OpBench("augment", run, counted_bytes, CASES, SMALL, modes=("fwd",), largest_error=2.0**-8)


@OP.parametrize
def bench_augment(benchmark, row) -> None:
    OP.bench(benchmark, row)


if __name__ == "__main__":
    OP.main()
