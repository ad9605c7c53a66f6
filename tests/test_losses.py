"""The GAN losses and the gradient penalty against formulas in fp64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcyclegan.steps.losses import PENALTY_WEIGHT, gan_loss, gradient_penalty, l1_loss

FORMULAS = {
    "lsgan": lambda p, t: (p - t) ** 2,
    "vanilla": lambda p, t: np.logaddexp(0, p) - t * p,
    "wgangp": lambda p, t: p * (1 - 2 * t),
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("mode", FORMULAS)
def test_gan_loss_is_its_formula(mode, real):
    logits = random(2, 1, 5, 3) * 30  # far enough for a careless cross entropy to overflow
    wanted = FORMULAS[mode](logits.numpy(), float(real)).mean()
    assert gan_loss(logits, real, mode).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("mode", FORMULAS)
def test_gan_loss_by_finite_differences(mode, real):
    logits = random(2, 1, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: gan_loss(p, real, mode), logits)


def test_lsgan_is_the_default_and_an_unknown_mode_is_refused():
    logits = random(1, 1, 3, 3)
    assert gan_loss(logits, True) == gan_loss(logits, True, "lsgan")
    with pytest.raises(ValueError, match="hinge"):
        gan_loss(logits, True, "hinge")


def test_losses_of_bf16_are_computed_in_fp32():
    """One operation on exact fp32 values of the bf16 input, so equal to the last bit."""
    logits = random(1, 1, 8, 8).bfloat16()
    for mode in FORMULAS:
        assert torch.equal(gan_loss(logits, True, mode), gan_loss(logits.float(), True, mode))
    assert l1_loss(logits, logits * 0).dtype == torch.float32


def judge(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A small discriminator whose slope changes with x."""
    return F.conv2d(F.silu(F.conv2d(x, w, padding=1)), w[:1, :1].expand(1, 4, 3, 3))


def test_penalty_is_its_formula():
    """Of a judge that is linear in each sample, whose slope is known: c for every pixel."""
    slopes = torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
    real, fake = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    found = gradient_penalty(lambda x: x * slopes, real, fake, torch.tensor([0.2, 0.9]))
    lengths = slopes.flatten().numpy() * np.sqrt(3 * 4 * 4)
    assert found.item() == pytest.approx(PENALTY_WEIGHT * ((lengths - 1) ** 2).mean(), rel=1e-12)
    assert PENALTY_WEIGHT == 10.0


def test_penalty_mixes_as_it_says():
    """The slope of sum(x^2) / 2 is x itself, so the penalty shows where it was taken."""
    real, fake, share = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1), torch.tensor([0.25, 0.75])
    found = gradient_penalty(lambda x: x.square() / 2, real, fake, share)
    mixed = share.view(2, 1, 1, 1) * real + (1 - share.view(2, 1, 1, 1)) * fake
    wanted = 10 * (mixed.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_slope_and_weight_gradient_of_the_penalty_by_finite_differences():
    """The second derivative is right: gradcheck of the penalty by the judge's weights."""
    real, fake, w = random(2, 2, 5, 5), random(2, 2, 5, 5, seed=1), 0.3 * random(4, 2, 3, 3, seed=2)
    share = torch.tensor([0.3, 0.6])

    def penalty(w):
        return gradient_penalty(lambda x: judge(x, w), real, fake, share)

    assert torch.autograd.gradcheck(penalty, w.requires_grad_())
    step, mixed = 1e-6, 0.3 * real[:1] + 0.7 * fake[:1]
    with torch.no_grad():
        slopes = [
            (judge(mixed + step * e, w).sum() - judge(mixed - step * e, w).sum()) / (2 * step)
            for e in torch.eye(mixed.numel(), dtype=mixed.dtype).view(-1, *mixed.shape[1:])
        ]
    length = torch.stack(slopes).norm()
    alone = gradient_penalty(lambda x: judge(x, w), real[:1], fake[:1], share[:1].double())
    # share is float32: 0.3 is known to 1e-8
    torch.testing.assert_close(alone, 10 * (length - 1).square(), rtol=1e-6, atol=1e-9)


def test_penalty_of_a_judge_without_slope_has_a_finite_gradient():
    w = torch.zeros(1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    real = random(1, 3, 4, 4)
    penalty = gradient_penalty(lambda x: F.conv2d(x, w), real, -real, torch.ones(1))
    penalty.backward()
    assert penalty.item() == 10.0 and torch.isfinite(w.grad).all()
