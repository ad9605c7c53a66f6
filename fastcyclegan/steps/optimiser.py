"""Master weights in fp32, their copies in the compute dtype, and Adam."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fastcyclegan.models import Network


class Weights:
    """The live weights of one network, and the copies that a step computes with.

    Args:
        net: the network, on its device; its parameters are the masters.
        dtype: of the images. Convolutions compute in it; scale and shift of a norm stay in fp32, as
            ``Network.weights_in`` has it. A master that has its dtype already serves itself.

    Attributes:
        masters: the parameters, in a fixed order.
        copies: what a step computes with; they require a gradient, and have the order and memory
            format of the masters.
    """

    def __init__(self, net: Network, dtype: torch.dtype) -> None:
        self.masters = [p for _, p in net.live_parameters()]
        pairs = list(zip(net.weights_in(dtype), self.masters, strict=True))
        self.copies = [w if w is p else w.detach().requires_grad_() for w, p in pairs]
        self._cast = [i for i, (copy, p) in enumerate(pairs) if copy is not p]

    def detached(self) -> list[torch.Tensor]:
        """The copies, for a pass that must not cost gradients of the weights."""
        return [copy.detach() for copy in self.copies]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the masters into the copies."""
        if self._cast:
            copies, masters = ([x[i] for i in self._cast] for x in (self.copies, self.masters))
            torch._foreach_copy_(copies, masters)

    @torch.no_grad()
    def set_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Store ``gradients`` of the copies as those of the masters, in their layout and dtype.

        Fused Adam walks through memory without looking at strides, so both must be laid out alike.
        """
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.empty_like(master)
        torch._foreach_copy_([master.grad for master in self.masters], list(gradients))


class _Adam(torch.optim.Adam):
    """Adam that hands its channels_last tensors to torch's kernel as the contiguous ones they are.

    On a CPU the fused kernel walks through memory without looking at strides, and yet clones every
    gradient whose strides are not those of a contiguous tensor.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[torch.Tensor]) -> bool:
        any_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [x.permute(0, 2, 3, 1) if x.ndim == 4 else x for x in tensors]
        return any_complex


def adam(weights: Iterable[Weights], lr: float, beta1: float) -> torch.optim.Adam:
    """Adam over the masters of several networks, as JZ sets it: betas (beta1, 0.999), eps 1e-8.

    On a GPU the rate is a tensor, which a captured step reads anew at each replay.
    """
    masters = [p for w in weights for p in w.masters]
    on_gpu = masters[0].is_cuda
    rate = torch.tensor(lr, device=masters[0].device) if on_gpu else lr
    kind = {"fused": True, "capturable": on_gpu}
    optimiser = _Adam(masters, lr=rate, betas=(beta1, 0.999), eps=1e-8, **kind)
    for p in masters:
        # What torch makes in the first step: here from the beginning, so that a step only changes.
        moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        optimiser.state[p] = {"step": torch.zeros((), device=p.device), **moments}
    # The first steps run uncaptured, and all do without --cuda_graph: no reason to warn.
    optimiser._warned_capturable_if_run_uncaptured = True
    return optimiser


def moments(optimiser: torch.optim.Adam) -> list[torch.Tensor]:
    """All that ``optimiser`` keeps, one tensor after the other."""
    return [tensor for state in optimiser.state.values() for tensor in state.values()]


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next steps."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
