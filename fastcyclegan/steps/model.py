"""What the networks of any system have in common while they are trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch

from fastcyclegan.distributed import ALONE, Ranks
from fastcyclegan.models import Network
from fastcyclegan.steps.gate import Gate
from fastcyclegan.steps.gradients import Gradients, SummedGradients
from fastcyclegan.steps.optimiser import Weights, adam, set_lr
from fastcyclegan.steps.phases import Phase, unmarked

# Called with a model, the images of a batch and their running numbers, (N,) int64; returns the
# losses, on the device, without a host sync. Of several processes each has some of the images, and
# all have all numbers; the losses are those of the whole batch.
Step = Callable[..., torch.Tensor]


class Model:
    """Everything that the steps of a system read and change.

    Args:
        networks: by name, on the training device.
        lr, beta1: of every optimiser.
        dtype: that the steps compute in.
        ranks: the processes that share each batch.

    Attributes:
        OWNERS: the networks that each optimiser moves, by its name.
        PHASES: the names of the attributes that hold the functions of a step's phases, which may be
            replaced by compiled ones.
        DRAWS: those of functions that draw: hundreds of launches on a GPU, compiled a single one.
        weights: of each network that is trained.
        optimisers, gradients: by name, what moves weights and what it reads.
        gate: keeps a step that is not finite from changing anything.
        phase: marks the phases of a step for a profiler, by their names in ``steps.phases``.
    """

    OWNERS: ClassVar[Mapping[str, tuple[str, ...]]]
    PHASES: ClassVar[tuple[str, ...]]
    DRAWS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        networks: dict[str, Network],
        lr: float,
        beta1: float,
        dtype: torch.dtype,
        ranks: Ranks = ALONE,
    ) -> None:
        self.networks, self.ranks, self._lr = networks, ranks, lr
        self.phase: Phase = unmarked
        trained = [name for names in self.OWNERS.values() for name in names]
        self.weights = {name: Weights(networks[name], dtype) for name in trained}
        self.optimisers = {
            which: adam((self.weights[name] for name in names), lr, beta1)
            for which, names in self.OWNERS.items()
        }
        self.gradients = {
            which: self._gradients([self.weights[name] for name in names])
            for which, names in self.OWNERS.items()
        }
        self._statistics = [buffer for net in networks.values() for buffer in net.buffers()]
        self.gate = Gate(self.optimisers.values(), self.device, ranks.world)

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

    def _gradients(self, weights: Sequence[Weights]) -> Gradients:
        return SummedGradients(weights, self.ranks) if self.ranks.many else Gradients(weights)

    def begin_step(self) -> None:
        """Open the gate, with no gradients; before the first forward pass of a step."""
        for gradients in self.gradients.values():
            gradients.begin()
        self.gate.begin([*self._statistics, *self.provisional()])

    def provisional(self) -> Sequence[torch.Tensor]:
        """What a step changes before all of it has been judged, besides running statistics."""
        return ()

    def move(self, losses: torch.Tensor, *which: str) -> torch.Tensor:
        """One step of the optimisers ``which`` with the gradients that were taken for them.

        Nothing moves, here and in the rest of the step, if ``losses`` or one of these gradients is
        not finite in any process. Returns ``losses`` of the whole batch.
        """
        owned = [name for optimiser in which for name in self.OWNERS[optimiser]]
        for optimiser in which:
            self.gradients[optimiser].settle()
        # what is judged is the same everywhere, and so is the judgement
        losses = self.ranks.mean(losses)
        self.gate.judge(losses, (p for name in owned for p in self.weights[name].masters))
        for optimiser in which:
            self._advance(optimiser)
        return losses

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
