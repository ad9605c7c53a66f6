"""The image pool against the rule: fill, one half, uniform slot, one image after the other."""

import numpy as np
import pytest
import torch

from fastcyclegan.kernels.image_pool import image_pool_ref
from fastcyclegan.kernels.philox import POOL_A, POOL_B
from fastcyclegan.steps.pool import ImagePool, VariedImagePool


def marked(numbers: list[int]) -> torch.Tensor:
    """Images that carry their number in every pixel."""
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)


def pool_by_the_rule(capacity, stored, batch, coins, slots):
    """JZ's loop on plain numbers."""
    out = []
    for image, coin, slot in zip(batch, coins, slots, strict=True):
        if len(stored) < capacity:
            stored.append(image)
            out.append(image)
        elif coin:
            out.append(stored[slot])
            stored[slot] = image
        else:
            out.append(image)
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


def run_pool(capacity: int, queries: int, stream: int = POOL_A, seed: int = 3) -> list[int]:
    pool = ImagePool(capacity, (3, 4, 5), torch.float64, torch.device("cpu"), seed, stream)
    numbers = torch.arange(queries)
    return [int(pool.query(marked([i]), numbers[i : i + 1])[0, 0, 0, 0]) for i in range(queries)]


def test_distribution_of_the_draws():
    """After the filling: one half comes back old, from a uniform slot (chi-squared)."""
    capacity, queries = 10, 4000
    out = run_pool(capacity, queries)
    assert out[:capacity] == list(range(capacity))
    old = [(i, x) for i, x in enumerate(out) if x != i]
    trials = queries - capacity
    assert abs(len(old) - trials / 2) < 4 * (trials / 4) ** 0.5
    slots, held = [], list(range(capacity))
    for i, x in old:
        slots.append(held.index(x))
        held[held.index(x)] = i
    expected = len(slots) / capacity
    chi_squared = sum((slots.count(k) - expected) ** 2 / expected for k in range(capacity))
    assert chi_squared < 27.9  # 99.9 % quantile for 9 degrees of freedom


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
