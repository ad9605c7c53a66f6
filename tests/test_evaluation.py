"""PSNR of images as they would be written."""

import pytest
import torch

from fastcyclegan.runs.evaluation import mean_distance, psnr, sliced_wasserstein


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
