"""PSNR of images as they would be written."""

import pytest
import torch

from fastcyclegan.runs.evaluation import psnr


def test_psnr_is_that_of_the_written_images():
    """One level of 255 everywhere is 48.13 dB; less than half a level is rounded away."""
    truth = (torch.arange(2 * 3 * 4 * 5) % 200).reshape(2, 3, 4, 5) / 127.5 - 1
    one_level = truth + 1.3 / 127.5
    assert psnr(one_level, truth) == pytest.approx(48.1308, abs=1e-4)
    halves = torch.cat([truth[:1] + 1 / 127.5, truth[1:] + 10 / 127.5])
    assert psnr(halves, truth) == pytest.approx((48.1308 + 28.1308) / 2, abs=1e-4)
