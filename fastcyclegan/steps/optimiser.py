"""Master weights in fp32, their copies in the compute dtype, and Adam."""

from collections.abc import Iterable, Sequence

import torch

from fastcyclegan.models import Network


class Weights:
    """The live weights of one network, and the copies that a step computes with.

    Args:
        net: the network, on its device; its parameters are the masters.
        dtype: of the copies. The masters themselves serve where they have that dtype.

    Attributes:
        masters: the parameters, in order of use.
        copies: tensors of ``dtype`` that require a gradient, in the same order and memory format.
    """

    def __init__(self, net: Network, dtype: torch.dtype) -> None:
        self.masters = [p for _, p in net.live_parameters()]
        self.copies: list[torch.Tensor] = [
            p if p.dtype == dtype else p.detach().to(dtype).requires_grad_() for p in self.masters
        ]

    def detached(self) -> list[torch.Tensor]:
        """The copies, for a pass that must not cost gradients of the weights."""
        return [copy.detach() for copy in self.copies]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the masters into the copies."""
        if self.copies and self.copies[0] is not self.masters[0]:
            torch._foreach_copy_(self.copies, self.masters)

    @torch.no_grad()
    def set_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Store ``gradients`` of the copies as those of the masters, in their layout and dtype.

        Fused Adam walks through memory without looking at strides, so both must be laid out alike.
        """
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.empty_like(master)
        torch._foreach_copy_([master.grad for master in self.masters], list(gradients))


def adam(weights: Iterable[Weights], lr: float, beta1: float) -> torch.optim.Adam:
    """Adam over the masters of several networks, as JZ sets it: betas (beta1, 0.999), eps 1e-8."""
    masters = [p for w in weights for p in w.masters]
    return torch.optim.Adam(masters, lr=lr, betas=(beta1, 0.999), eps=1e-8, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next steps."""
    for group in optimiser.param_groups:
        group["lr"] = lr
