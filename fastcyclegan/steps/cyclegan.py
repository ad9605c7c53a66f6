"""One CycleGAN step, in two implementations of the same mathematics.

With G_A : A -> B, G_B : B -> A, D_A the judge of domain B and D_B that of domain A::

    L_G = L(D_A(G_A(A)), real) + L(D_B(G_B(B)), real)
        + lambda_A |G_B(G_A(A)) - A| + lambda_B |G_A(G_B(B)) - B|
        + lambda_identity (lambda_B |G_A(B) - B| + lambda_A |G_B(A) - A|)
    L_D_A = (L(D_A(B), real) + L(D_A(pooled fake of B), fake)) / 2        and the same for D_B

The differences |.| are in units of [-1, 1], whatever the pixel range. ``gan_mode`` wgangp adds the
gradient penalty between B and the pooled fakes to L_D_A, unhalved.

One Adam step over both generators, then one over both discriminators, whose fakes are those made
before the generators moved; neither is made if anything is not finite (``gate.py``). Source: Zhu et
al., CycleGAN (2017), in the form and under the names of junyanz/pytorch-CycleGAN-and-pix2pix.

``reference_step`` calls a network once per set of images and lets autograd walk the whole graph.
``fused_step`` runs sets that share a network and its weights as one batch, which instance norm
keeps exact, and computes no gradient that is thrown away. A network with batch norm sees its sets
one by one in both, in JZ's order, on which its running statistics depend. Dropout draws from
torch's generator, so that with it the two are different draws of the same step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from fastcyclegan.distributed import ALONE, Ranks
from fastcyclegan.kernels.philox import MIX_A, MIX_B, POOL_A, POOL_B, philox_ref, uniform
from fastcyclegan.models import Network
from fastcyclegan.steps.losses import NAMES, gan_loss, gradient_penalty, l1_loss
from fastcyclegan.steps.model import Model
from fastcyclegan.steps.pool import make_pool
from fastcyclegan.steps.sets import apply_sets, judge_sets
from fastcyclegan.steps.twins import Twins

GENERATORS, DISCRIMINATORS = ("G_A", "G_B"), ("D_A", "D_B")
Losses = dict[str, torch.Tensor]
WeightsByName = Mapping[str, Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Settings:
    """What a step needs to know: JZ's options of the same names, and the compute dtype."""

    lambda_A: float = 10.0
    lambda_B: float = 10.0
    lambda_identity: float = 0.5
    gan_mode: str = "lsgan"
    pool_size: int = 50
    lr: float = 2e-4
    beta1: float = 0.5
    seed: int = 0
    pixel_range: str = "tanh"
    twin_streams: bool = False
    dtype: torch.dtype = torch.float32


class CycleGAN(Model):
    """Everything that a step reads and changes.

    Args:
        networks: G_A, G_B, D_A, D_B, on the training device.
        settings: the losses' weights and so on.
        shape_A, shape_B: (C, H, W) of the images of both domains; H and W are 0 where they vary.
        ranks: the processes that share each batch; every one has all of both pools.

    Attributes:
        generator_losses, discriminator_losses: the functions of these names, or compiled ones.
        twins: calls what G_A and G_B, or D_A and D_B, do without each other.
    """

    OWNERS: ClassVar[Mapping[str, tuple[str, ...]]] = {"G": GENERATORS, "D": DISCRIMINATORS}
    PHASES: ClassVar[tuple[str, ...]] = ("generator_losses", "discriminator_losses")

    def __init__(
        self,
        networks: dict[str, Network],
        settings: Settings,
        shape_A: tuple[int, int, int],
        shape_B: tuple[int, int, int],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(networks, settings.lr, settings.beta1, settings.dtype, ranks)
        self.settings = settings
        self.twins = Twins(self.device, settings.twin_streams)
        if settings.gan_mode == "wgangp":
            # the gradient penalty differentiates them twice
            for name in DISCRIMINATORS:
                networks[name].impl = "ref"
        self.generator_losses, self.discriminator_losses = generator_losses, discriminator_losses
        common = settings.dtype, self.device, settings.seed
        # a fake of B has the height and width of the A that it was made from
        self.pools = {
            "A": make_pool(settings.pool_size, (shape_A[0], *shape_B[1:]), *common, POOL_A),
            "B": make_pool(settings.pool_size, (shape_B[0], *shape_A[1:]), *common, POOL_B),
        }

    @property
    def uncompiled(self) -> frozenset[str]:
        """With wgangp the discriminators: compiled code has no second derivative."""
        penalty = self.settings.gan_mode == "wgangp"
        return frozenset((*DISCRIMINATORS, "discriminator_losses") if penalty else ())

    def pooled(self, number: torch.Tensor, **fakes: torch.Tensor) -> list[torch.Tensor]:
        """What the pools make of ``fakes`` of a batch, by domain; each process gives its own.

        ``number``: (N,) int64, the running numbers of the whole batch.
        """
        everyones = {domain: self.ranks.gather(fake.detach()) for domain, fake in fakes.items()}
        return [
            self.ranks.own(self.pools[domain].query(images.wait(), number))
            for domain, images in everyones.items()
        ]

    def put_back(self) -> None:
        """Undo what the step did to the pools, where the gate is shut."""
        for pool in self.pools.values():
            pool.put_back(self.gate.shut.bool())

    def memory(self) -> dict[str, torch.Tensor]:
        """Both image pools."""
        return {
            f"pool_{domain}/{name}": tensor
            for domain, pool in self.pools.items()
            for name, tensor in pool.state().items()
        }

    def load_memory(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`memory` returned."""
        for domain, pool in self.pools.items():
            own = f"pool_{domain}/"
            pool.load({k.removeprefix(own): x for k, x in tensors.items() if k.startswith(own)})


def fused_step(
    model: CycleGAN, real_A: torch.Tensor, real_B: torch.Tensor, number: torch.Tensor
) -> torch.Tensor:
    """One optimiser step; no host sync inside.

    A discriminator sees real images, pooled and current fakes in one pass, forward and backward:
    it is the same for all of them, as the generators move before it does.

    Args:
        model: changed in place.
        real_A, real_B: (N, C, H, W) in the compute dtype, channels_last.
        number: (N,) int64, the running numbers of the batch's images in the training; of several
            processes each has only its own of these images.

    Returns:
        (8,) losses in the order of ``losses.NAMES``, on the device; an unused idt is 0.
    """
    model.begin_step()
    weights = {name: of_network.copies for name, of_network in model.weights.items()}
    with model.phase("G_forward"):
        losses, *fakes = model.generator_losses(model, weights, real_A, real_B)
    with model.phase("pool"):
        pooled = model.pooled(number, A=fakes[0], B=fakes[1])
    with model.phase("D_forward"):
        judged = model.discriminator_losses(model, weights, (real_A, real_B), pooled, fakes)
        if model.settings.gan_mode == "wgangp":
            judged = _with_penalty(model, judged, weights, (real_A, real_B), pooled, number)
    with model.phase("D_backward"):
        of_fakes = model.gradients["D"].take(sum(judged.values()), also=fakes)
    with model.phase("G_backward"):
        model.gradients["G"].take([sum(losses.values()), *fakes], [None, *of_fakes])
    return _update(model, losses | judged, number)


def generator_losses(
    model: CycleGAN, weights: WeightsByName, real_A: torch.Tensor, real_B: torch.Tensor
) -> tuple[Losses, torch.Tensor, torch.Tensor]:
    """Cycle and identity losses, fake_A and fake_B, with ``weights`` of both generators."""
    settings, pixels = model.settings, model.settings.pixel_range
    fake_A, fake_B, rec_A, rec_B, idt_A, idt_B = _translations(model, weights, real_A, real_B)
    losses = {
        "cycle_A": settings.lambda_A * l1_loss(rec_A, real_A, pixels),
        "cycle_B": settings.lambda_B * l1_loss(rec_B, real_B, pixels),
    }
    if idt_A is not None:
        scale = settings.lambda_identity
        losses["idt_A"] = scale * settings.lambda_B * l1_loss(idt_A, real_B, pixels)
        losses["idt_B"] = scale * settings.lambda_A * l1_loss(idt_B, real_A, pixels)
    return losses, fake_A, fake_B


def discriminator_losses(
    model: CycleGAN,
    weights: WeightsByName,
    real: Sequence[torch.Tensor],
    pooled: Sequence[torch.Tensor],
    fakes: Sequence[torch.Tensor],
) -> Losses:
    """All losses that discriminators measure, but a gradient penalty; images in order A, B.

    The generators' differentiate by ``fakes``, the discriminators' own by their ``weights``.
    """
    losses, mode = {}, model.settings.gan_mode
    logits = model.twins(
        judge_sets,
        *(
            (model.networks[D], weights[D], fakes[domain], real[domain], pooled[domain])
            for D, domain in (("D_A", 1), ("D_B", 0))
        ),
    )
    for G, D, (on_fake, on_real, on_pooled) in zip(GENERATORS, DISCRIMINATORS, logits, strict=True):
        losses[G] = gan_loss(on_fake, True, mode)
        losses[D] = 0.5 * (gan_loss(on_real, True, mode) + gan_loss(on_pooled, False, mode))
    return losses


def _with_penalty(
    model: CycleGAN,
    losses: Losses,
    weights: WeightsByName,
    real: Sequence[torch.Tensor],
    pooled: Sequence[torch.Tensor],
    number: torch.Tensor,
) -> Losses:
    for name, domain in (("D_A", 1), ("D_B", 0)):
        judge = partial(model.networks[name].compute, weights=weights[name])
        extra = penalty(model, name, judge, real[domain], pooled[domain], number)
        losses = losses | {name: losses[name] + extra}
    return losses


def reference_step(
    model: CycleGAN, real_A: torch.Tensor, real_B: torch.Tensor, number: torch.Tensor
) -> torch.Tensor:
    """As :func:`fused_step`, one network call per set of images; the oracle and the baseline."""
    mode, phase = model.settings.gan_mode, model.phase
    model.begin_step()
    require_gradients(model, DISCRIMINATORS, False)
    with phase("G_forward"):
        losses, fakes = _plain_generator_losses(model, real_A, real_B)
    with phase("G_backward"):
        model.optimisers["G"].zero_grad()
        sum(losses.values()).backward()
    require_gradients(model, DISCRIMINATORS, True)
    model.optimisers["D"].zero_grad()
    for name, real, domain in (("D_A", real_B, "B"), ("D_B", real_A, "A")):
        D = model.networks[name]
        with phase("pool"):
            (pooled,) = model.pooled(number, **{domain: fakes[domain]})
        with phase("D_forward"):
            losses[name] = 0.5 * (gan_loss(D(real), True, mode) + gan_loss(D(pooled), False, mode))
            if mode == "wgangp":
                losses[name] = losses[name] + penalty(model, name, D, real, pooled, number)
        with phase("D_backward"):
            losses[name].backward()
    return _update(model, losses, number)


def _plain_generator_losses(
    model: CycleGAN, real_A: torch.Tensor, real_B: torch.Tensor
) -> tuple[Losses, dict[str, torch.Tensor]]:
    """As :func:`generator_losses`, in JZ's order of calls; and the fakes by domain."""
    settings, mode = model.settings, model.settings.gan_mode
    pixels = settings.pixel_range
    G_A, G_B, D_A, D_B = (model.networks[name] for name in GENERATORS + DISCRIMINATORS)
    fake_B = G_A(real_A)
    rec_A = G_B(fake_B)
    fake_A = G_B(real_B)
    rec_B = G_A(fake_A)
    losses = {
        "G_A": gan_loss(D_A(fake_B), True, mode),
        "G_B": gan_loss(D_B(fake_A), True, mode),
        "cycle_A": settings.lambda_A * l1_loss(rec_A, real_A, pixels),
        "cycle_B": settings.lambda_B * l1_loss(rec_B, real_B, pixels),
    }
    if settings.lambda_identity > 0:
        scale = settings.lambda_identity
        losses["idt_A"] = scale * settings.lambda_B * l1_loss(G_A(real_B), real_B, pixels)
        losses["idt_B"] = scale * settings.lambda_A * l1_loss(G_B(real_A), real_A, pixels)
    return losses, {"A": fake_A, "B": fake_B}


STEPS = {"fused": fused_step, "reference": reference_step}


def _translations(
    model: CycleGAN, weights: WeightsByName, real_A: torch.Tensor, real_B: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """fake_A, fake_B, rec_A, rec_B, idt_A, idt_B; the last two are None where they are not used."""
    A, B = ((model.networks[name], weights[name]) for name in GENERATORS)
    identity, both = model.settings.lambda_identity > 0, model.twins
    if not A[0].per_sample:
        return _in_order(*A, *B, real_A, real_B, identity)
    sets = ((real_A, real_B), (real_B, real_A)) if identity else ((real_A,), (real_B,))
    (fake_B, *idt_A), (fake_A, *idt_B) = both(apply_sets, (*A, *sets[0]), (*B, *sets[1]))
    (rec_B,), (rec_A,) = both(apply_sets, (*A, fake_A), (*B, fake_B))
    return fake_A, fake_B, rec_A, rec_B, *(idt_A or [None]), *(idt_B or [None])


def _in_order(
    G_A: Network,
    w_A: Sequence[torch.Tensor],
    G_B: Network,
    w_B: Sequence[torch.Tensor],
    real_A: torch.Tensor,
    real_B: torch.Tensor,
    identity: bool,
) -> tuple[torch.Tensor | None, ...]:
    """As :func:`_translations`, where running statistics depend on the order of the passes."""
    fake_B = G_A.compute(real_A, w_A)
    rec_A = G_B.compute(fake_B, w_B)
    fake_A = G_B.compute(real_B, w_B)
    rec_B = G_A.compute(fake_A, w_A)
    if not identity:
        return fake_A, fake_B, rec_A, rec_B, None, None
    idt_A, idt_B = G_A.compute(real_B, w_A), G_B.compute(real_A, w_B)
    return fake_A, fake_B, rec_A, rec_B, idt_A, idt_B


def penalty(
    model: CycleGAN,
    name: str,
    judge: Callable[[torch.Tensor], torch.Tensor],
    real: torch.Tensor,
    pooled: torch.Tensor,
    number: torch.Tensor,
) -> torch.Tensor:
    """The gradient penalty of discriminator ``name``; the mixture is drawn by image number."""
    stream = {"D_A": MIX_B, "D_B": MIX_A}[name]
    share = uniform(philox_ref(model.settings.seed, stream, model.ranks.own(number))[0])
    return gradient_penalty(judge, real, pooled, share, model.settings.pixel_range)


def _update(model: CycleGAN, losses: Losses, number: torch.Tensor) -> torch.Tensor:
    """Both Adam steps, or nothing if the gate finds what is not finite; the losses as a row."""
    row = model.move(as_row(losses), "G", "D")
    model.end_step(number)
    return row


def require_gradients(model: CycleGAN, names: Sequence[str], flag: bool) -> None:
    """Whether gradients reach the weights of the networks ``names``."""
    for name in names:
        for master in model.weights[name].masters:
            master.requires_grad_(flag)


def as_row(losses: Losses) -> torch.Tensor:
    """(8,) losses in the order of NAMES, 0 for one that is not among ``losses``."""
    zero = torch.zeros_like(losses["G_A"])
    return torch.stack([losses.get(name, zero).detach() for name in NAMES])
