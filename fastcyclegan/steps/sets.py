"""Several sets of images through one network: as one batch, wherever that gives the same."""

from collections.abc import Sequence

import torch

from fastcyclegan.models import Network


def apply_sets(
    net: Network, weights: Sequence[torch.Tensor], *images: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The network over several sets of images."""
    if len(images) > 1 and _joinable(net, images):
        return net.compute(torch.cat(images), weights).chunk(len(images))
    return tuple(net.compute(x, weights) for x in images)


def judge_sets(
    net: Network, weights: Sequence[torch.Tensor], fake: torch.Tensor, *images: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """A discriminator over ``fake``, which alone gets a gradient, and ``images``.

    The weights get none from ``fake``, however large one comes back from there, and none is
    computed. A network with batch norm sees the sets in the order that they are given in.
    """
    sets = (fake, *images)
    if _joinable(net, sets):
        weighed = sum(map(len, images))
        *on_images, on_fake = net.compute(torch.cat([*images, fake]), weights, weighed).chunk(
            len(sets)
        )
        return on_fake, *on_images
    on_fake = net.compute(fake, [w.detach() for w in weights])
    return on_fake, *(net.compute(x, weights) for x in images)


def _joinable(net: Network, images: Sequence[torch.Tensor]) -> bool:
    return net.per_sample and len({x.shape for x in images}) == 1
