"""From a loss to the gradients that an optimiser reads: those of one process, or of all."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch

from fastcyclegan.distributed import Pending, Ranks
from fastcyclegan.steps.optimiser import Weights

# Messages per optimiser and step: enough that the first ones travel while backward goes on.
BUCKETS = 4


class Gradients:
    """The gradients of the networks that one optimiser moves, in a process that trains alone.

    Args:
        weights: of these networks.
    """

    def __init__(self, weights: Sequence[Weights]) -> None:
        self.weights = weights
        self.copies = [copy for w in weights for copy in w.copies]
        self.masters = [master for w in weights for master in w.masters]

    def take(
        self,
        of: torch.Tensor | Sequence[torch.Tensor],
        seeds: Sequence[torch.Tensor | None] | None = None,
        also: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, ...]:
        """Differentiate by the copies, and store that as gradients of the masters.

        Args:
            of: a loss, or outputs with their own gradients ``seeds``; None is that of a loss.
            also: what else to differentiate by.

        Returns:
            The gradients by ``also``.
        """
        found = torch.autograd.grad(of, [*self.copies, *also], seeds)
        remaining = iter(found)
        for w in self.weights:
            w.set_gradients([next(remaining) for _ in w.copies])
        return tuple(remaining)

    def begin(self) -> None:
        """Forget what a step that broke off has left, as one that cannot be captured does."""

    def settle(self) -> None:
        """To be called before anyone reads the gradients of the masters."""


class SummedGradients(Gradients):
    """As :class:`Gradients`, summed over all processes, in at most ``BUCKETS`` messages.

    A bucket is one flat tensor with some gradients. It is sent as soon as backward has computed the
    last of them, in a fixed order, and travels while the step goes on. Backward begins at the last
    layers, and so do the buckets. The gradients of the masters are views of the buckets, laid out
    as the masters are.
    """

    def __init__(self, weights: Sequence[Weights], ranks: Ranks) -> None:
        super().__init__(weights)
        self.ranks = ranks
        order = range(len(self.masters))[::-1]
        self._buckets = [
            _Bucket([self.masters[i] for i in part], [self.copies[i] for i in part])
            for part in split(order, [self.masters[i].numel() for i in order], BUCKETS)
        ]
        self._sent: list[Pending] = []

    @property
    def flat(self) -> list[torch.Tensor]:
        """The buckets, as they are sent."""
        return [bucket.flat for bucket in self._buckets]

    def take(
        self,
        of: torch.Tensor | Sequence[torch.Tensor],
        seeds: Sequence[torch.Tensor | None] | None = None,
        also: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, ...]:
        """As for one process; sent while it goes on."""
        hooks = [
            copy.register_hook(partial(self._arrived, bucket, place))
            for bucket in self._buckets
            for place, copy in enumerate(bucket.copies)
        ]
        try:
            found = torch.autograd.grad(of, [*self.copies, *also], seeds)
        finally:
            for hook in hooks:
                hook.remove()
        return found[len(self.copies) :]

    def begin(self) -> None:
        """What was sent is not waited for: nothing was while a graph was recorded."""
        self._sent = []
        for bucket in self._buckets:
            bucket.arrived = {}

    def settle(self) -> None:
        """Wait for the sums; gradients that :meth:`take` did not see are sent first."""
        if not self._sent:
            for bucket in self._buckets:
                bucket.arrived = {i: p.grad for i, p in enumerate(bucket.masters)}
            self._send_complete()
        for sum_ in self._sent:
            sum_.wait()
        self._sent = []
        for bucket in self._buckets:
            for master, view in zip(bucket.masters, bucket.views, strict=True):
                master.grad = view

    def _arrived(self, bucket: "_Bucket", place: int, gradient: torch.Tensor) -> None:
        bucket.arrived[place] = gradient
        self._send_complete()

    def _send_complete(self) -> None:
        """Send the buckets that are complete, none before its turn: the same in all processes."""
        for bucket in self._buckets[len(self._sent) :]:
            if len(bucket.arrived) < len(bucket.masters):
                return
            bucket.fill()
            self._sent.append(self.ranks.sum(bucket.flat))


class _Bucket:
    """Some masters, the copies that backward knows of them, and one flat tensor of gradients."""

    def __init__(self, masters: list[torch.Tensor], copies: list[torch.Tensor]) -> None:
        self.masters, self.copies = masters, copies
        self.flat = masters[0].new_empty(sum(p.numel() for p in masters))
        ends = accumulate(p.numel() for p in masters)
        self.views = [
            self.flat.as_strided(p.shape, p.stride(), end - p.numel())
            for p, end in zip(masters, ends, strict=True)
        ]
        self.arrived: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def fill(self) -> None:
        """Copy what has arrived into the flat tensor, and forget it."""
        torch._foreach_copy_(self.views, [self.arrived[i] for i in range(len(self.views))])
        self.arrived = {}


def split(items: Sequence[int], sizes: Sequence[int], parts: int) -> list[list[int]]:
    """``items`` in their order, as at most ``parts`` groups of about the same size in all."""
    whole, groups, begun = sum(sizes), {}, 0
    for item, size in zip(items, sizes, strict=True):
        middle = begun + size / 2
        groups.setdefault(int(middle * parts / whole), []).append(item)
        begun += size
    return list(groups.values())
