"""The image pool against the rule: fill, one half, uniform slot, one image after the other.

Tests with a ``device`` run the kernel: on a GPU, or in a process of their own under Triton's
interpreter, which ``test_under_interpreter`` starts.
"""

import numpy as np
import pytest
import torch

import numerics
from fastcyclegan.kernels import dispatch
from fastcyclegan.kernels.image_pool import image_pool, image_pool_ref, undo_image_pool
from fastcyclegan.kernels.philox import POOL_A, POOL_B
from fastcyclegan.steps.pool import ImagePool, VariedImagePool
from numerics import image, on_devices


def marked(numbers: list[int]) -> torch.Tensor:
    """Images that carry their number in every pixel."""
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)


def pool_by_the_rule(capacity, stored, batch, coins, slots):
    """JZ's loop on plain numbers."""
    out = []
    for new, coin, slot in zip(batch, coins, slots, strict=True):
        if len(stored) < capacity:
            stored.append(new)
            out.append(new)
        elif coin:
            out.append(stored[slot])
            stored[slot] = new
        else:
            out.append(new)
    return out


@pytest.mark.parametrize(("capacity", "n"), [(1, 1), (3, 2), (4, 7), (5, 5)])
def test_reference_follows_the_rule_given_the_draws(capacity, n):
    """Also when a batch passes the filling, and when two of its images draw the same slot."""
    rng = np.random.default_rng(0)
    pool = torch.full((capacity, 3, 4, 5), torch.nan, dtype=torch.float64)
    count, stored = torch.zeros((), dtype=torch.int64), []
    for query in range(12):
        batch = list(range(query * n, query * n + n))
        coins, slots = rng.random(n) > 0.5, rng.integers(0, capacity, n)
        wanted = pool_by_the_rule(capacity, stored, batch, coins, slots)
        got = image_pool_ref(
            pool, count, marked(batch), torch.from_numpy(coins), torch.from_numpy(slots)
        )
        assert torch.equal(got, marked(wanted))
        assert count.item() == len(stored)
        assert torch.equal(pool[: len(stored)], marked(stored))


def test_images_that_differ_in_size_follow_the_same_draws():
    common = torch.device("cpu"), 3, POOL_A
    one_size = ImagePool(4, (3, 4, 5), torch.float64, *common)
    varied = VariedImagePool(4, 3, POOL_A, torch.device("cpu"))
    numbers = torch.arange(60)
    for i in range(60):
        query = marked([i]), numbers[i : i + 1]
        assert torch.equal(one_size.query(*query), varied.query(*query))
        if i == 30:
            kept = {name: image.clone() for name, image in varied.state().items()}
            varied = VariedImagePool(4, 3, POOL_A, torch.device("cpu"))
            varied.load(kept)
    assert len(varied.images) == 4


def run_pool(
    capacity: int, queries: int, stream: int = POOL_A, seed: int = 3, n: int = 1
) -> list[int]:
    """What the pool hands out for images that carry their number, in batches of ``n``."""
    pool = ImagePool(capacity, (3, 4, 5), torch.float64, torch.device("cpu"), seed, stream)
    out = [pool.query(marked(i.tolist()), i) for i in torch.arange(queries).split(n)]
    return torch.cat(out)[:, 0, 0, 0].int().tolist()


def run_kernel(capacity: int, n: int, batches: int, device: str) -> list[int]:
    """As ``run_pool`` with the kernel, in batches of ``n`` images."""
    pool, count, seed = pool_state(capacity, (1, 1, 1), torch.float64, device)
    out = []
    for number in torch.arange(n * batches, device=device).split(n):
        images = number.double().view(n, 1, 1, 1)
        out += image_pool(pool, count, images, seed, POOL_A, number, impl="triton").flatten().int()
    return [int(x) for x in out]


def pool_state(capacity, shape, dtype, device, seed=3):
    """An empty pool, its count and the seed, as ``image_pool`` takes them."""
    pool = torch.full((capacity, *shape), torch.nan, dtype=dtype, device=device)
    count, seed = (torch.tensor(value, device=device) for value in (0, seed))
    return pool.contiguous(memory_format=torch.channels_last), count, seed


def check_distribution(out: list[int], capacity: int) -> None:
    """After the filling: one half comes back old, from a uniform slot (chi-squared)."""
    assert out[:capacity] == list(range(capacity))
    old = [(i, x) for i, x in enumerate(out) if x != i]
    trials = len(out) - capacity
    assert abs(len(old) - trials / 2) < 4 * (trials / 4) ** 0.5
    slots, held = [], list(range(capacity))
    for i, x in old:
        slots.append(held.index(x))
        held[held.index(x)] = i
    expected = len(slots) / capacity
    chi_squared = sum((slots.count(k) - expected) ** 2 / expected for k in range(capacity))
    assert chi_squared < 27.9  # 99.9 % quantile for 9 degrees of freedom


def test_distribution_of_the_draws():
    check_distribution(run_pool(10, 4000, n=40), 10)


@on_devices
def test_distribution_of_the_kernels_draws(device):
    """In batches with many images for each slot, of which the first one ends the filling."""
    batches = 60 if device == "cuda" else 6
    out = run_kernel(10, 32, batches, device)
    check_distribution(out, 10)
    assert out == run_pool(10, 32 * batches, n=1)


# Capacity, images per batch, image: the filling ends inside of a batch, several images draw the
# same slot, an image has more than one block or but one value.
QUERIES = [
    (1, 1, (3, 4, 5)),
    (1, 5, (5, 3, 3)),
    (5, 5, (1, 1, 1)),
    (50, 2, (63, 5, 9)),
    (2, 9, (3, 4, 5)),
    (4, 7, (3, 17, 13)),
]


@on_devices
@pytest.mark.parametrize(("capacity", "n", "shape"), QUERIES, ids=str)
def test_kernel_equals_the_reference(capacity, n, shape, device):
    """Result, pool and count, bit for bit, query after query, also past image number 2**32."""
    dtype = torch.float32
    kernel, reference = (pool_state(capacity, shape, dtype, device) for _ in range(2))
    for query in range(3):
        images = image((n, *shape), dtype, device, seed=query)
        number = torch.arange(query * n, query * n + n, device=device) + 2**32 - n
        found = image_pool(*kernel[:2], images, kernel[2], POOL_B, number, impl="triton")
        wanted = image_pool(*reference[:2], images, reference[2], POOL_B, number, impl="ref")
        assert torch.equal(found, wanted)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert kernel[1].item() == reference[1].item() == min(capacity, (query + 1) * n)
        assert torch.equal(*(state[0].nan_to_num(7) for state in (kernel, reference)))


@on_devices
@pytest.mark.parametrize(("capacity", "n", "shape"), QUERIES[-2:], ids=str)
def test_kernel_undoes_a_query(capacity, n, shape, device):
    """Where the flag says so: pool and count are what they were, as with the reference."""
    dtype = torch.float32
    pool, count, seed = pool_state(capacity, shape, dtype, device)
    for query in range(2):
        images = image((n, *shape), dtype, device, seed=query)
        number = torch.arange(query * n, query * n + n, device=device)
        old, before = pool.nan_to_num_(0).clone(), count.clone()
        out = image_pool(pool, count, images, seed, POOL_B, number, impl="triton")
        new, after = pool.clone(), count.clone()
        for shut, impl in ((True, "ref"), (True, "triton"), (False, "triton")):
            pool.copy_(new), count.copy_(after)
            flag = torch.tensor(shut, device=device)
            undo_image_pool(pool, count, out, before, seed, POOL_B, number, flag, impl=impl)
            assert torch.equal(pool, old if shut else new), (shut, impl)
            assert torch.equal(count, before if shut else after)
        pool.copy_(new), count.copy_(after)


@pytest.mark.cuda
@pytest.mark.parametrize("n", [1, 8, 65])
def test_images_of_the_networks(n):
    kernel, reference = (pool_state(50, (3, 256, 256), torch.bfloat16, "cuda") for _ in range(2))
    images = image((n, 3, 256, 256), torch.bfloat16, "cuda")
    for query in range(60 // n + 2):
        number = torch.arange(query * n, query * n + n, device="cuda")
        found = image_pool(*kernel[:2], images, kernel[2], POOL_A, number)
        wanted = image_pool(*reference[:2], images, reference[2], POOL_A, number, impl="ref")
        assert torch.equal(found, wanted)
    assert torch.equal(kernel[0], reference[0])


@pytest.mark.cuda
@pytest.mark.parametrize("n", [1, 4])
def test_graph_replays_draw_anew(n):
    """One captured query equals as many eager ones on the CPU: fill, then other draws each time."""
    pool = ImagePool(5, (3, 17, 33), torch.float32, torch.device("cuda"), 1, POOL_A)
    peer = ImagePool(5, (3, 17, 33), torch.float32, torch.device("cpu"), 1, POOL_A)
    number, images = torch.arange(n, device="cuda"), image((n, 3, 17, 33), torch.float32, "cuda")
    graph = torch.cuda.CUDAGraph()
    pool.query(images, number)  # compiled before the capture
    pool.images.zero_(), pool.count.zero_()
    with torch.cuda.graph(graph):
        out = pool.query(images, number)
        number.add_(n)
    own = []
    for replay in range(40):
        new = image((n, 3, 17, 33), torch.float32, "cpu", seed=replay)
        images.copy_(new)
        graph.replay()
        wanted = peer.query(new, torch.arange(replay * n, replay * n + n))
        assert torch.equal(out.cpu(), wanted)
        own.append(torch.equal(wanted, new))
    assert torch.equal(pool.images.cpu(), peer.images) and pool.count.item() == 5
    assert not all(own[2:]) and (n > 1 or any(own[6:]))


@pytest.mark.cuda
def test_more_than_2_to_the_31_elements():
    state = pool_state(3, (256, 2000, 2000), torch.bfloat16, "cuda")
    images = torch.randn((3, 2000, 2000, 256), device="cuda", dtype=torch.bfloat16)
    images = images.permute(0, 3, 1, 2)
    assert images.numel() > 2**31
    number = torch.arange(3, device="cuda")
    assert torch.equal(image_pool(*state[:2], images, state[2], POOL_A, number)[-1], images[-1])
    assert torch.equal(state[0][-1], images[-1])


def test_draws_depend_on_seed_stream_and_image_number_alone():
    assert run_pool(5, 60) == run_pool(5, 60)
    assert run_pool(5, 60) != run_pool(5, 60, stream=POOL_B)
    assert run_pool(5, 60) != run_pool(5, 60, seed=4)


def test_an_image_handed_out_is_a_copy():
    pool = ImagePool(1, (3, 4, 5), torch.float64, torch.device("cpu"), 0, POOL_A)
    first = pool.query(marked([7]), torch.zeros(1, dtype=torch.int64))
    for i in range(1, 20):
        pool.query(marked([i]), torch.full((1,), i))
    assert torch.equal(first, marked([7]))


def test_capacity_zero_hands_through_without_gradient():
    pool = ImagePool(0, (3, 4, 5), torch.float64, torch.device("cpu"), 0, POOL_A)
    image = marked([1]).clone().requires_grad_()
    out = pool.query(image, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(out, image) and not out.requires_grad


def test_images_of_any_layout_are_pooled():
    pools = [ImagePool(1, (3, 4, 5), torch.float64, torch.device("cpu"), 0, POOL_A)] * 2
    images = image((2, 3, 4, 5), torch.float64, "cpu")
    for pool, x in zip(pools, (images, images.contiguous()), strict=True):
        pool.count.zero_()
        y = pool.query(x, torch.arange(2))
        assert torch.equal(y[0], images[0]) and y.is_contiguous(memory_format=torch.channels_last)


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) == 9
