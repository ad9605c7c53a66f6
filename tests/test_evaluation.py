"""Scores of images as they would be written, by their formulas in fp64."""

import numpy as np
import pytest
import torch

from fastcyclegan.data.images import from_uint8
from fastcyclegan.runs import evaluation
from fastcyclegan.runs.evaluation import (
    mean_distance,
    pair_scores,
    psnr,
    sliced_wasserstein,
    ssim,
)


def test_psnr_is_that_of_the_written_images():
    """One level of 255 everywhere is 48.13 dB; less than half a level is rounded away."""
    truth = (torch.arange(2 * 3 * 4 * 5) % 200).reshape(2, 3, 4, 5) / 127.5 - 1
    one_level = truth + 1.3 / 127.5
    assert psnr(one_level, truth) == pytest.approx(48.1308, abs=1e-4)
    halves = torch.cat([truth[:1] + 1 / 127.5, truth[1:] + 10 / 127.5])
    assert psnr(halves, truth) == pytest.approx((48.1308 + 28.1308) / 2, abs=1e-4)


def flat(greys: list[float], channels: int = 3) -> torch.Tensor:
    return torch.tensor(greys).view(-1, 1, 1, 1).expand(-1, channels, 8, 8).contiguous()


def test_sliced_wasserstein_is_a_distance_of_distributions():
    """Zero for the same images in another order; for flat greys in proportion to their shift."""
    x = torch.rand(20, 3, 8, 8)
    assert sliced_wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-6)
    y = torch.rand(20, 3, 8, 8)
    assert sliced_wasserstein(x, y) == pytest.approx(sliced_wasserstein(y, x), rel=1e-6)
    greys = flat([-0.5, 0.0, 0.3])
    small, large = (sliced_wasserstein(greys, greys + shift) for shift in (0.1, 0.4))
    assert large == pytest.approx(4 * small, rel=1e-4)
    # the mean of |w . 1| over unit directions w is sqrt(2 / pi) of a pixel, in many dimensions
    assert small == pytest.approx(0.1 * (2 / torch.pi) ** 0.5, rel=0.15)


def test_mean_distance_is_that_of_all_pairs():
    assert mean_distance(flat([0.0, 0.3, 0.9])) == pytest.approx((0.3 + 0.6 + 0.9) / 3, rel=1e-5)
    assert mean_distance(flat([0.2, 0.2])) == 0


def noise(n: int, height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = n, height, width, channels
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def ssim_formula(x: np.ndarray, y: np.ndarray) -> float:
    """Of one channel, window by window."""
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (z[top : top + 11, left : left + 11].astype(np.float64) for z in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = ((weights * (z - (weights * z).sum()) ** 2).sum() for z in (a, b))
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1) * (2 * cov + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )  # fmt: skip
    return float(np.mean(values))


def test_scores_of_pairs_are_their_formulas():
    x = noise(3, 13, 16)
    y = ((x.int() * 3 + noise(3, 13, 16, seed=1)) // 4).to(torch.uint8)
    found, a, b = pair_scores(x, y), x.double().numpy(), y.double().numpy()
    mse = ((a - b) ** 2).mean((1, 2, 3))
    assert found["psnr"] == pytest.approx((10 * np.log10(255**2 / mse)).mean(), rel=1e-12)
    assert found["l1"] == pytest.approx(np.abs(a / 127.5 - b / 127.5).mean(), rel=1e-12)
    truth = [[ssim_formula(a[i, ..., c], b[i, ..., c]) for c in range(3)] for i in range(3)]
    assert ssim(x, y).tolist() == pytest.approx(np.mean(truth, axis=1), rel=1e-9)
    assert found["ssim"] == pytest.approx(np.mean(truth), rel=1e-9)
    assert 0.5 < found["ssim"] < 0.999
    same = pair_scores(x, x)
    assert same == {"psnr": float("inf"), "ssim": 1.0, "l1": 0.0}


def test_many_pairs_are_scored_in_parts(monkeypatch):
    monkeypatch.setattr(evaluation, "AT_ONCE", 64 * 11 * 11)
    x, y = noise(70, 11, 11, 1), noise(70, 11, 11, 1, seed=1)
    each = [pair_scores(x[i : i + 1], y[i : i + 1])["ssim"] for i in range(70)]
    assert pair_scores(x, y)["ssim"] == pytest.approx(np.mean(each), rel=1e-12)


def transport_formula(x: np.ndarray, y: np.ndarray) -> float:
    """W1 in one dimension between n and m values: each value is moved in n * m equal parts."""
    parts = np.repeat(np.sort(x), len(y)), np.repeat(np.sort(y), len(x))
    return np.abs(parts[0] - parts[1]).mean()


@pytest.mark.parametrize(("n", "m"), [(5, 5), (7, 4), (70, 3)])
def test_sliced_wasserstein_is_its_formula(monkeypatch, n, m):
    monkeypatch.setattr(evaluation, "AT_ONCE", 64 * 90)
    x, y = noise(n, 6, 5), noise(m, 6, 5, seed=1) // 2
    lines = torch.randn(90, 256, generator=torch.Generator().manual_seed(0)).double().numpy()
    lines /= np.linalg.norm(lines, axis=0)
    flat = [z.double().permute(0, 3, 1, 2).flatten(1).numpy() / 127.5 - 1 for z in (x, y)]
    truth = np.mean([transport_formula(*(f @ lines[:, d] for f in flat)) for d in range(256)])
    assert sliced_wasserstein(x, y) == pytest.approx(truth, rel=1e-6)
    assert sliced_wasserstein(from_uint8(x), from_uint8(y)) == sliced_wasserstein(x, y)
