"""The gate: a step whose losses or gradients are not finite changes nothing but counters.

All of it stays on the device, without a branch or a wait of the host: Adam skips by its
``found_inf``, pools and running statistics are put back. The host reads at ticks what was skipped.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

LISTED = 64
# By bytes.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def by_width(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """``tensors`` as integers of their width, those of one width together."""
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        dtype = INTEGERS[tensor.element_size()]
        groups.setdefault(dtype, []).append(tensor.view(dtype))
    yield from groups.values()


class Kept:
    """What some tensors of one integer dtype hold now, to be put back into them.

    All of them in a few launches; as integers, so that 0 times anything is 0.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors, self._old = tensors, [torch.empty_like(x) for x in tensors]
        torch._foreach_copy_(self._old, tensors)

    def put_back(self, bad: torch.Tensor) -> None:
        """Put it back where ``bad``, 0-D int64, is 1, and nothing where it is 0; only once."""
        bad = bad.to(self._tensors[0].dtype)
        torch._foreach_mul_(self._old, bad)
        torch._foreach_mul_(self._tensors, 1 - bad)
        torch._foreach_add_(self._tensors, self._old)


@dataclass(frozen=True)
class Skipped:
    """What a reading of the gate found.

    Attributes:
        count: steps skipped since the reading before.
        numbers: the number of the first image of each, the first ``LISTED`` of them.
        in_a_row: how many were skipped in a row up to now.
    """

    count: int
    numbers: tuple[int, ...]
    in_a_row: int


class Gate:
    """Judges a step once gradients are there and before anything is updated with them.

    Args:
        optimisers: those of the step; where the gate is shut their steps do nothing.
        device: of their parameters.
        summed: how many processes' gradients are summed up in those that are judged; what they
            become is the mean.

    Attributes:
        shut: 0-D fp32, 1 if the last step was not finite, else 0.
    """

    def __init__(
        self, optimisers: Iterable[torch.optim.Optimizer], device: torch.device, summed: int = 1
    ) -> None:
        self.shut = torch.zeros((), device=device)
        self._scale = torch.full((), 1 / summed, device=device)
        # skipped since the last reading, skipped in a row, then the numbers
        self._record = torch.zeros(2 + LISTED, dtype=torch.int64, device=device)
        self._slots = torch.arange(LISTED, device=device)
        self._changing: list[Kept] = []
        for optimiser in optimisers:
            optimiser.found_inf = self.shut

    @torch.no_grad()
    def begin(self, changing: Sequence[torch.Tensor]) -> None:
        """Open, and remember ``changing``: what is changed before the step has been judged."""
        self.shut.zero_()
        self._changing = [Kept(group) for group in by_width(changing)]

    @torch.no_grad()
    def judge(self, losses: torch.Tensor, masters: Iterable[torch.Tensor]) -> None:
        """Shut the gate if one of the losses or of the gradients of ``masters`` is not finite."""
        self.shut.copy_(torch.maximum(self.shut, 1.0 - torch.isfinite(losses).all().float()))
        # One pass over all gradients, which it multiplies by the scale.
        gradients = [p.grad for p in masters]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.shut, self._scale)

    @torch.no_grad()
    def end(self, number: torch.Tensor) -> None:
        """Count the step; where the gate is shut, put back what :meth:`begin` remembered.

        ``number``: (N,) int64, the running numbers of its images in the training.
        """
        bad = self.shut.to(torch.int64)
        skipped, in_a_row, numbers = self._record[0], self._record[1], self._record[2:]
        here = (self._slots == skipped) & bad.bool()
        numbers.copy_(torch.where(here, number[0], numbers))
        skipped += bad
        in_a_row.copy_((in_a_row + 1) * bad)
        for kept in self._changing:
            kept.put_back(bad)
        self._changing = []

    def read(self) -> Skipped:
        """What was skipped since the last call; one host sync."""
        skipped, in_a_row, *numbers = self._record.tolist()
        self._record[0] = 0
        return Skipped(skipped, tuple(numbers[:skipped]), in_a_row)

    def load(self, in_a_row: int) -> None:
        """Go on as after a reading that found ``in_a_row``."""
        self._record[0], self._record[1] = 0, in_a_row
