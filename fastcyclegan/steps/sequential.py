"""The CycleGAN step with four updates, one after another: G_A, D_A, G_B, D_B.

The losses are those of ``cyclegan.py``, but each generator is moved alone, by::

    L_G_A = L(D_A(G_A(A)), real)
          + lambda_A |G_B(G_A(A)) - A| + lambda_B |G_A(G_B(B)) - B|
          + lambda_identity lambda_B |G_A(B) - B|                         and the same for G_B

so that both cycles are in both losses. Every update computes its forward anew, with the networks as
the update before left them; a discriminator is shown the fakes of its own generator's update. Each
network has an Adam of its own. The cycle loss that is reported is that of the own generator's
update. Nothing moves from the first update on whose loss or gradients are not finite
(``gate.py``). Source: the article of hardikbansal/CycleGAN, see docs/article.md.

``reference_step`` and ``fused_step`` are to each other what they are in ``cyclegan.py``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import torch

from fastcyclegan.steps.cyclegan import (
    CycleGAN,
    Losses,
    WeightsByName,
    as_row,
    penalty,
    require_gradients,
)
from fastcyclegan.steps.losses import gan_loss, l1_loss
from fastcyclegan.steps.sets import apply_sets


class Side(NamedTuple):
    """One direction: ``G`` makes domain ``to`` of ``of``, ``F`` leads back, ``D`` judges ``to``."""

    G: str
    F: str
    D: str
    of: str
    to: str


SIDES = (Side("G_A", "G_B", "D_A", "A", "B"), Side("G_B", "G_A", "D_B", "B", "A"))
ORDER = ("G_A", "D_A", "G_B", "D_B")


class SequentialCycleGAN(CycleGAN):
    """As :class:`CycleGAN`, with an optimiser for each network."""

    OWNERS: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in ORDER}

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.generator_losses, self.discriminator_losses = generator_losses, discriminator_loss


def fused_step(
    model: SequentialCycleGAN, real_A: torch.Tensor, real_B: torch.Tensor, number: torch.Tensor
) -> torch.Tensor:
    """Four optimiser steps; arguments and result are those of ``cyclegan.fused_step``."""
    real, losses = {"A": real_A, "B": real_B}, {}
    model.begin_step()
    for side in SIDES:
        of_side, fake = generator_phase(model, side, real)
        of_side = _move(model, side.G, of_side)
        with model.phase("pool"):
            (pooled,) = model.pooled(number, **{side.to: fake})
        of_judge = discriminator_phase(model, side, real, pooled, number)
        losses |= _reported(side, of_side) | _move(model, side.D, of_judge)
    model.end_step(number)
    return as_row(losses)


def generator_phase(
    model: SequentialCycleGAN, side: Side, real: Mapping[str, torch.Tensor]
) -> tuple[Losses, torch.Tensor]:
    """Losses of a generator, whose gradients alone are taken, and its fake."""
    weights = {name: model.weights[name].detached() for name in (side.F, side.D)}
    weights[side.G] = model.weights[side.G].copies
    with model.phase("G_forward"):
        losses, fake = model.generator_losses(model, weights, side, real)
    with model.phase("G_backward"):
        model.gradients[side.G].take(sum(losses.values()))
    return losses, fake.detach()


def generator_losses(
    model: SequentialCycleGAN,
    weights: WeightsByName,
    side: Side,
    real: Mapping[str, torch.Tensor],
) -> tuple[Losses, torch.Tensor]:
    """Losses of a generator, and its fake, with ``weights`` of the three networks of ``side``."""
    F, D = (partial(model.networks[n].compute, weights=weights[n]) for n in (side.F, side.D))
    sets = [real[side.of], F(real[side.to])]
    if model.settings.lambda_identity > 0:
        sets.append(real[side.to])
    fake, *seen = apply_sets(model.networks[side.G], weights[side.G], *sets)
    return _losses(model, side, real, D(fake), F(fake), *seen), fake


def discriminator_phase(
    model: SequentialCycleGAN,
    side: Side,
    real: Mapping[str, torch.Tensor],
    pooled: torch.Tensor,
    number: torch.Tensor,
) -> Losses:
    """Loss of a discriminator, whose gradients are taken."""
    weights = model.weights[side.D].copies
    with model.phase("D_forward"):
        loss = model.discriminator_losses(model, weights, side, real[side.to], pooled)
        if model.settings.gan_mode == "wgangp":
            judge = partial(model.networks[side.D].compute, weights=weights)
            loss = loss + penalty(model, side.D, judge, real[side.to], pooled, number)
    with model.phase("D_backward"):
        model.gradients[side.D].take(loss)
    return {side.D: loss}


def discriminator_loss(
    model: SequentialCycleGAN,
    weights: Sequence[torch.Tensor],
    side: Side,
    real: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """Loss of a discriminator, without a gradient penalty, with ``weights``."""
    mode = model.settings.gan_mode
    on_real, on_fake = apply_sets(model.networks[side.D], weights, real, pooled)
    return 0.5 * (gan_loss(on_real, True, mode) + gan_loss(on_fake, False, mode))


def reference_step(
    model: SequentialCycleGAN, real_A: torch.Tensor, real_B: torch.Tensor, number: torch.Tensor
) -> torch.Tensor:
    """As :func:`fused_step`, one network call per set of images; the oracle and the baseline."""
    real, losses, mode = {"A": real_A, "B": real_B}, {}, model.settings.gan_mode
    model.begin_step()
    for side in SIDES:
        G, F, D = (model.networks[name] for name in side[:3])
        A, B = real[side.of], real[side.to]
        _only(model, side.G)
        with model.phase("G_forward"):
            fake_A, fake_B = F(B), G(A)
            seen = [G(fake_A)] + ([G(B)] if model.settings.lambda_identity > 0 else [])
            of_side = _losses(model, side, real, D(fake_B), F(fake_B), *seen)
        with model.phase("G_backward"):
            sum(of_side.values()).backward()
        of_side = _move(model, side.G, of_side)
        _only(model, side.D)
        with model.phase("pool"):
            (pooled,) = model.pooled(number, **{side.to: fake_B})
        with model.phase("D_forward"):
            loss = 0.5 * (gan_loss(D(B), True, mode) + gan_loss(D(pooled), False, mode))
            if mode == "wgangp":
                loss = loss + penalty(model, side.D, D, B, pooled, number)
        with model.phase("D_backward"):
            loss.backward()
        losses |= _reported(side, of_side) | _move(model, side.D, {side.D: loss})
    require_gradients(model, ORDER, True)
    model.end_step(number)
    return as_row(losses)


STEPS = {"fused": fused_step, "reference": reference_step}


def _losses(
    model: SequentialCycleGAN,
    side: Side,
    real: Mapping[str, torch.Tensor],
    judged: torch.Tensor,
    rec_of: torch.Tensor,
    rec_to: torch.Tensor,
    idt: torch.Tensor | None = None,
) -> Losses:
    """The losses of a generator by name, from what it was seen to do."""
    settings = model.settings
    weight = {"A": settings.lambda_A, "B": settings.lambda_B}

    def difference(image: torch.Tensor, domain: str) -> torch.Tensor:
        return weight[domain] * l1_loss(image, real[domain], settings.pixel_range)

    losses = {
        side.G: gan_loss(judged, True, settings.gan_mode),
        f"cycle_{side.of}": difference(rec_of, side.of),
        f"cycle_{side.to}": difference(rec_to, side.to),
    }
    if idt is not None:
        losses[f"idt_{side.of}"] = settings.lambda_identity * difference(idt, side.to)
    return losses


def _reported(side: Side, losses: Losses) -> Losses:
    return {name: loss for name, loss in losses.items() if name != f"cycle_{side.to}"}


def _move(model: SequentialCycleGAN, name: str, losses: Losses) -> Losses:
    """Adam's step of network ``name`` alone, unless the gate finds what is not finite.

    Returns ``losses`` of the whole batch.
    """
    row = model.move(torch.stack([loss.detach() for loss in losses.values()]), name)
    return dict(zip(losses, row, strict=True))


def _only(model: SequentialCycleGAN, trained: str) -> None:
    """Let gradients reach the weights of ``trained`` alone, and forget what it had."""
    for name in ORDER:
        require_gradients(model, (name,), name == trained)
    model.optimisers[trained].zero_grad()
