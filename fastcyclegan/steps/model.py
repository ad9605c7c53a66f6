"""What the networks of any system have in common while they are trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch

from fastcyclegan.models import Network
from fastcyclegan.steps.gate import Gate
from fastcyclegan.steps.optimiser import Weights, adam, set_lr
from fastcyclegan.steps.phases import Phase, unmarked

# Called with a model, the images of a batch and their running numbers, (N,) int64; returns the
# losses, on the device, without a host sync.
Step = Callable[..., torch.Tensor]


class Model:
    """Everything that the steps of a system read and change.

    Args:
        networks: by name, on the training device.
        lr, beta1: of every optimiser.
        dtype: that the steps compute in.

    Attributes:
        OWNERS: the networks that each optimiser moves, by its name.
        PHASES: the names of the attributes that hold the functions of a step's phases, which may be
            replaced by compiled ones.
        weights: of each network that is trained.
        optimisers: by name.
        gate: keeps a step that is not finite from changing anything.
        phase: marks the phases of a step for a profiler, by their names in ``steps.phases``.
    """

    OWNERS: ClassVar[Mapping[str, tuple[str, ...]]]
    PHASES: ClassVar[tuple[str, ...]]

    def __init__(
        self, networks: dict[str, Network], lr: float, beta1: float, dtype: torch.dtype
    ) -> None:
        self.networks, self._lr = networks, lr
        self.phase: Phase = unmarked
        trained = [name for names in self.OWNERS.values() for name in names]
        self.weights = {name: Weights(networks[name], dtype) for name in trained}
        self.optimisers = {
            which: adam((self.weights[name] for name in names), lr, beta1)
            for which, names in self.OWNERS.items()
        }
        self._statistics = [buffer for net in networks.values() for buffer in net.buffers()]
        self.gate = Gate(self.optimisers.values(), self.device)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(next(iter(self.networks.values())).parameters()).device

    @property
    def uncompiled(self) -> frozenset[str]:
        """Names of networks and phases that torch.compile must leave alone."""
        return frozenset()

    def set_lr(self, lr: float) -> None:
        """The learning rate of all optimisers from the next step on."""
        if lr == self._lr:
            return
        self._lr = lr
        for optimiser in self.optimisers.values():
            set_lr(optimiser, lr)

    def refresh_weights(self, names: Iterable[str] | None = None) -> None:
        """Bring the copies in the compute dtype up to date with the master weights."""
        for name in self.weights if names is None else names:
            self.weights[name].refresh()

    def set_gradients(self, which: str, gradients: Sequence[Sequence[torch.Tensor]]) -> None:
        """Hand the optimiser ``which`` the gradients of each of its networks."""
        for name, of_network in zip(self.OWNERS[which], gradients, strict=True):
            self.weights[name].set_gradients(of_network)

    def begin_step(self) -> None:
        """Open the gate; before the first forward pass of a step."""
        self.gate.begin([*self._statistics, *self.provisional()])

    def provisional(self) -> Sequence[torch.Tensor]:
        """What a step changes before all of it has been judged, besides running statistics."""
        return ()

    def update(self, which: str, gradients: Sequence[Sequence[torch.Tensor]]) -> None:
        """One step of the optimiser ``which``; ``gradients`` of each of its networks."""
        self.set_gradients(which, gradients)
        self._advance(which)

    def move(self, losses: torch.Tensor, *which: str) -> None:
        """One step of the optimisers ``which`` with the gradients that they were handed.

        Nothing moves, here and in the rest of the step, if ``losses`` or one of these gradients is
        not finite.
        """
        owned = [name for optimiser in which for name in self.OWNERS[optimiser]]
        self.gate.judge(losses, (p for name in owned for p in self.weights[name].masters))
        for optimiser in which:
            self._advance(optimiser)

    def _advance(self, which: str) -> None:
        with self.phase(f"{which[0]}_opt"):
            self.optimisers[which].step()
            self.refresh_weights(self.OWNERS[which])

    def end_step(self, number: torch.Tensor) -> None:
        """Count the step, and undo what it did to the model's memory where the gate is shut.

        ``number``: (N,) int64, the running numbers of its images in the training.
        """
        self.put_back()
        self.gate.end(number)

    def put_back(self) -> None:
        """Undo what the step did to pools and the like, where the gate is shut."""

    def memory(self) -> dict[str, torch.Tensor]:
        """What a resumed training needs besides weights and moments, by name."""
        return {}

    def load_memory(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`memory` returned; ``tensors`` holds other names as well."""
        for name, value in self.memory().items():
            value.copy_(tensors[name])


def gradients(
    of: torch.Tensor | Sequence[torch.Tensor],
    by: Sequence[Sequence[torch.Tensor]],
    seeds: Sequence[torch.Tensor | None] | None = None,
) -> list[list[torch.Tensor]]:
    """Gradients of a loss, or of outputs with their own gradients ``seeds``, grouped as ``by`` is.

    A seed of None is that of a loss.
    """
    flat = torch.autograd.grad(of, [w for group in by for w in group], seeds)
    remaining = iter(flat)
    return [[next(remaining) for _ in group] for group in by]
