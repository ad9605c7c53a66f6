"""One DCGAN step, in two implementations of the same mathematics.

With noise z, images x, G : z -> image and D : image -> probability of being real::

    L_D = -mean ln D(x) - mean ln(1 - D(G(z)))        one Adam step of D
    L_G = -mean ln D(G(z))                            one Adam step of G, under the D just updated

x and G(z) go through D as two batches, each with batch-norm statistics of its own, and nothing is
halved. D gives logits here: the cross entropy of their sigmoid is computed without rounding a
probability to 0 or 1. Source: Radford et al. (2016), in the form of pytorch/examples.

``reference_step`` lets autograd walk every graph, as that code does. ``fused_step`` computes no
gradient that is thrown away: those of D's weights in the step of G.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastcyclegan.distributed import ALONE, Ranks
from fastcyclegan.kernels.philox import NOISE, normal_ref
from fastcyclegan.models import Network
from fastcyclegan.steps.losses import at_least_fp32, gan_loss
from fastcyclegan.steps.model import Model
from fastcyclegan.steps.optimiser import moments

# D and G are losses; the others are mean probabilities, as pytorch/examples prints them: of real
# images, and of generated ones before and after the step of D.
NAMES = ("D", "G", "D_x", "D_G_z1", "D_G_z2")
_MODE = "vanilla"
Values = dict[str, torch.Tensor]
Copies = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What a step needs to know: options of the same names, and the compute dtype."""

    lr: float = 2e-4
    beta1: float = 0.5
    ema: float = 0.0
    seed: int = 0
    dtype: torch.dtype = torch.float32


class DCGAN(Model):
    """Everything that a step reads and changes.

    Args:
        networks: G and D, and with ``ema`` G_ema, on the training device.
        settings: the learning rate and so on.
        ranks: the processes that share each batch.

    Attributes:
        generate, discriminator_loss, generator_loss: the functions of these names, or compiled
            ones.
        normal: ``normal_ref``, or as well compiled.
    """

    OWNERS: ClassVar[Mapping[str, tuple[str, ...]]] = {"G": ("G",), "D": ("D",)}
    PHASES: ClassVar[tuple[str, ...]] = ("generate", "discriminator_loss", "generator_loss")
    DRAWS: ClassVar[tuple[str, ...]] = ("normal",)

    def __init__(
        self, networks: dict[str, Network], settings: Settings, ranks: Ranks = ALONE
    ) -> None:
        super().__init__(networks, settings.lr, settings.beta1, settings.dtype, ranks)
        self.settings = settings
        self.generate, self.normal = generate, normal_ref
        self.discriminator_loss, self.generator_loss = discriminator_loss, generator_loss

    def provisional(self) -> Sequence[torch.Tensor]:
        """D, which has moved when G is judged, and the average."""
        changed = [*self.weights["D"].masters, *moments(self.optimisers["D"])]
        changed += [w for w in self.weights["D"].copies if not isinstance(w, torch.nn.Parameter)]
        if "G_ema" in self.networks:
            changed += self.networks["G_ema"].parameters()
        return [tensor.detach() for tensor in changed]

    def noise(self, number: torch.Tensor) -> torch.Tensor:
        """(N, nz, 1, 1) in the compute dtype, for a batch of the running numbers (N,) int64.

        Of several processes each has its own part of that.
        """
        nz = self.networks["G"].arch["nz"]
        z = self.normal(self.settings.seed, NOISE, self.ranks.own(number), nz)
        return z.to(self.settings.dtype)[..., None, None]


def fused_step(model: DCGAN, real: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """One optimiser step; no host sync inside.

    Args:
        model: changed in place.
        real: (N, C, H, W) in the compute dtype, channels_last.
        number: (N,) int64, the running numbers of the batch's images in the training; of several
            processes each has only its own of these images.

    Returns:
        (5,) in the order of NAMES, on the device.
    """
    of_G, of_D = model.weights["G"], model.weights["D"]
    model.begin_step()
    with model.phase("G_forward"):
        fake = model.generate(model, of_G.copies, model.noise(number))
    with model.phase("D_forward"):
        values = model.discriminator_loss(model, of_D.copies, real, fake.detach())
    with model.phase("D_backward"):
        model.gradients["D"].take(values["D"])
    values = _move(model, "D", values)
    with model.phase("G_forward"):
        of_fake = model.generator_loss(model, of_D.detached(), fake)
    with model.phase("G_backward"):
        model.gradients["G"].take(of_fake["G"])
    return _finish(model, values | _move(model, "G", of_fake), number)


def generate(model: DCGAN, weights: Copies, z: torch.Tensor) -> torch.Tensor:
    """Images of the noise ``z`` with ``weights`` of G."""
    return model.networks["G"].compute(z, weights)


def discriminator_loss(
    model: DCGAN, weights: Copies, real: torch.Tensor, fake: torch.Tensor
) -> Values:
    """D, D_x and D_G_z1 with ``weights`` of D; the gradient of ``fake`` is not followed."""
    D = model.networks["D"]
    on_real, on_fake = D.compute(real, weights), D.compute(fake, weights)
    loss = gan_loss(on_real, True, _MODE) + gan_loss(on_fake, False, _MODE)
    return {"D": loss, "D_x": _probability(on_real), "D_G_z1": _probability(on_fake)}


def generator_loss(model: DCGAN, weights: Copies, fake: torch.Tensor) -> Values:
    """G and D_G_z2 with ``weights`` of D."""
    logits = model.networks["D"].compute(fake, weights)
    return {"G": gan_loss(logits, True, _MODE), "D_G_z2": _probability(logits)}


def reference_step(model: DCGAN, real: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """As :func:`fused_step`, as pytorch/examples does it; the oracle and the baseline."""
    G, D, phase = model.networks["G"], model.networks["D"], model.phase
    model.begin_step()
    for optimiser in model.optimisers.values():
        optimiser.zero_grad()
    with phase("D_forward"):
        on_real = D(real)
        loss_real = gan_loss(on_real, True, _MODE)
    with phase("D_backward"):
        loss_real.backward()
    with phase("G_forward"):
        fake = G(model.noise(number))
    with phase("D_forward"):
        on_fake = D(fake.detach())
        loss_fake = gan_loss(on_fake, False, _MODE)
    with phase("D_backward"):
        loss_fake.backward()
    values = {"D": loss_real + loss_fake}
    values |= {"D_x": _probability(on_real), "D_G_z1": _probability(on_fake)}
    values = _move(model, "D", values)
    with phase("G_forward"):
        logits = D(fake)
        of_fake = {"G": gan_loss(logits, True, _MODE), "D_G_z2": _probability(logits)}
    with phase("G_backward"):
        of_fake["G"].backward()
    return _finish(model, values | _move(model, "G", of_fake), number)


STEPS = {"fused": fused_step, "reference": reference_step}


def _move(model: DCGAN, which: str, values: Values) -> Values:
    """Adam's step of one network, unless the gate is shut; ``values`` of the whole batch."""
    row = model.move(torch.stack([value.detach() for value in values.values()]), which)
    return dict(zip(values, row, strict=True))


def _finish(model: DCGAN, values: Values, number: torch.Tensor) -> torch.Tensor:
    """The average behind G's step, and the end of the step; what it has to say."""
    _follow(model, number)
    model.end_step(number)
    return torch.stack([values[name] for name in NAMES])


@torch.no_grad()
def _follow(model: DCGAN, number: torch.Tensor) -> None:
    """Move G_ema, if there is one, towards G: by 1 - ema, and faster in the first steps.

    After t steps by at least 9 / (10 + t), so that the beginning is soon forgotten. Statistics of
    batch norms are taken over as they are.
    """
    if "G_ema" not in model.networks:
        return
    average, G = model.networks["G_ema"], model.networks["G"]
    done = number[0] // len(number)
    share = (9 / (10 + done)).clamp(min=1 - model.settings.ema)
    mine, theirs = list(average.parameters()), list(G.parameters())
    towards = torch._foreach_sub(theirs, mine)
    torch._foreach_mul_(towards, share.to(mine[0].dtype))
    torch._foreach_add_(mine, towards)
    torch._foreach_copy_(list(average.buffers()), list(G.buffers()))


def _probability(logits: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(at_least_fp32(logits.detach())).mean()
