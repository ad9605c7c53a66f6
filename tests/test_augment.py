"""Crop, flip and normalisation against NumPy slices; on a GPU what is special to the kernel.

On a CPU ``test_op_contract.py`` holds the kernel to the reference, under Triton's interpreter.
"""

import numpy as np
import pytest
import torch

import oracles
from fastcyclegan.kernels.augment import augment, augment_ref, crop_ref, normalise_ref
from fastcyclegan.pixel_range import PIXEL_RANGES

SIZES = [(9, 12), (17, 13), (8, 8)]


def buffer(channels, seed=0):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (h, w, channels), dtype=np.uint8) for h, w in SIZES]
    pixels = torch.from_numpy(np.concatenate([x.reshape(-1, channels) for x in images]))
    offset = torch.tensor([0, 9 * 12, 9 * 12 + 17 * 13])
    return images, pixels, offset, torch.tensor([w for _, w in SIZES])


def cut(channels=3, size=(5, 7), dtype=torch.float32, device="cpu"):
    images, pixels, offset, width = buffer(channels)
    pick = torch.tensor([2, 0, 1, 1])
    top, left = torch.tensor([3, 0, 12, 6]), torch.tensor([1, 5, 6, 0])
    flip = torch.tensor([False, True, True, False])
    args = [t.to(device) for t in (pixels, offset[pick], width[pick], top, left, flip)]
    want = []
    for k, i in enumerate(pick.tolist()):
        window = images[i][top[k] : top[k] + size[0], left[k] : left[k] + size[1]]
        want.append(window[:, ::-1] if flip[k] else window)
    return augment_ref(*args, size, dtype), np.stack(want), args


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_windows_are_numpy_slices(channels):
    y, want, args = cut(channels)
    assert np.array_equal(crop_ref(*args, (5, 7)).numpy(), want)
    exact = (2 * want.astype(np.float64) - 255) / 255
    got = y.permute(0, 2, 3, 1).double().numpy()
    # One rounding of the product and one of the constant 1/255, half an ulp each.
    assert np.abs(got - exact).max() <= 2.0**-23
    assert y.dtype == torch.float32 and y.shape == (4, channels, 5, 7)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_normalise_is_exact_at_the_ends_and_increasing():
    x = torch.arange(256, dtype=torch.uint8)
    y = normalise_ref(x)
    assert y[0] == -1 and y[255] == 1
    assert bool((y[1:] > y[:-1]).all())
    assert torch.equal(y, -y.flip(0))
    assert float((y - (x.float() / 127.5 - 1)).abs().max()) <= 2.0**-23


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_rounded_once(dtype):
    x = torch.arange(256, dtype=torch.uint8)
    y = normalise_ref(x, dtype)
    assert y.dtype == dtype
    if dtype == torch.float64:
        assert np.abs(y.numpy() - (2 * np.arange(256.0) - 255) / 255).max() <= 2.0**-52
    else:
        assert torch.equal(y, normalise_ref(x).to(dtype))


@pytest.mark.parametrize("pixel_range", ["linear255", "tanh255"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_raw_ranges_are_the_bytes_themselves(dtype, pixel_range):
    x = torch.arange(256, dtype=torch.uint8)
    zero, scale, *_ = PIXEL_RANGES[pixel_range]
    y = normalise_ref(x, dtype, zero, scale)
    assert y.dtype == dtype and torch.equal(y.to(torch.int64), torch.arange(256))
    images, pixels, offset, width = buffer(3)
    corner = torch.zeros(3, dtype=torch.int64)
    window = pixels, offset, width, corner, corner, corner.bool(), (8, 8)
    cut_out = augment_ref(*window, dtype, zero=zero, scale=scale)
    want = np.stack([image[:8, :8] for image in images])
    assert np.array_equal(cut_out.permute(0, 2, 3, 1).double().numpy(), want.astype(np.float64))


def test_arguments_are_left_alone():
    _, pixels, offset, width = buffer(3)
    before = pixels.clone()
    zero = torch.zeros(3, dtype=torch.int64)
    augment_ref(pixels, offset, width, zero, zero, zero.bool(), (8, 8), torch.float32)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_ranges(dtype):
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(normalise_ref(x, dtype, 0, 1), x.to(dtype))
    assert torch.equal(normalise_ref(x, dtype), (2 * x.to(dtype) - 255) * (1 / 255))


def test_halo_is_a_reflection():
    y, _, args = cut(size=(5, 7))
    padded = augment(*args, (5, 7), pad=3)
    assert torch.equal(padded[:, :, 3:-3, 3:-3], y)
    assert np.array_equal(padded.numpy(), oracles.pad(y.numpy(), 3))
    assert padded.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
def test_batches_of_the_networks():
    draw = np.random.default_rng(0)
    pixels = torch.from_numpy(draw.integers(0, 256, (3 * 286 * 286, 3), dtype=np.uint8)).cuda()
    plan = [[2 * 286 * 286, 0, 286 * 286], [286] * 3, [0, 9, 30], [30, 0, 7], [1, 0, 1]]
    plan = [torch.tensor(row, device="cuda") for row in plan]
    for pad in (0, 3):
        for dtype in (torch.bfloat16, torch.float32):
            found = augment(pixels, *plan, (256, 256), dtype, pad=pad)
            assert torch.equal(found, augment_ref(pixels, *plan, (256, 256), dtype, pad=pad))


@pytest.mark.cuda
def test_a_buffer_of_more_than_2_to_the_31_bytes():
    pixels = torch.randint(0, 256, (800_000_000, 3), dtype=torch.uint8, device="cuda")
    start = 799_000_000
    plan = [torch.tensor([v], device="cuda") for v in (start, 1000, 3, 5, 1)]
    near = [torch.tensor([v], device="cuda") for v in (0, 1000, 3, 5, 1)]
    assert torch.equal(
        augment(pixels, *plan, (256, 256)), augment(pixels[start:], *near, (256, 256))
    )


@pytest.mark.cuda
def test_graph_replays_read_the_plan_anew():
    pixels, *plan = cut(device="cuda")[2]
    augment(pixels, *plan, (5, 7))  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = augment(pixels, *plan, (5, 7))
    graph.replay()
    before = y.clone()
    plan[2].fill_(1), plan[4].logical_not_()
    graph.replay()
    assert torch.equal(y, augment_ref(pixels, *plan, (5, 7))) and not torch.equal(y, before)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_numbers_on_cuda(dtype):
    assert torch.equal(cut(dtype=dtype)[0], cut(dtype=dtype, device="cuda")[0].cpu())
