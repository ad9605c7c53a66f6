"""What a step costs, found without computing it: its FLOPs, and the memory it needs.

The step is run on fake tensors, which have shapes, types and lifetimes but no data, so that a step
that would not fit into memory, or would take minutes, can be looked at in seconds.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fastcyclegan.steps.model import Model


class Cost(NamedTuple):
    """Of one step.

    Attributes:
        flops: of convolutions and matrix products, two per multiply-add.
        held: bytes that stay from step to step, by what they are for.
        live: bytes of all other tensors, at the moment when these are most.
    """

    flops: int
    held: Mapping[str, int]
    live: int

    @property
    def bytes(self) -> int:
        """The most that is held at once."""
        return sum(self.held.values()) + self.live


def step_cost(
    model: Model,
    step: Callable[..., torch.Tensor],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
) -> Cost:
    """The cost of ``step``, which is an eager one.

    Gradients and moments, which its first call makes, count as held. They come up behind the moment
    when most is alive, so that the first call shows what the later ones need.

    Args:
        model: not changed, and nothing of its size is allocated.
        step: called with the model, the images and their running numbers.
        shapes: (N, C, H, W) of each batch of images that it takes.
        dtype: of the images.
    """
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        shadow = copy.deepcopy(model)
    layout = {"memory_format": torch.channels_last, "device": model.device}
    with mode:
        images = [torch.empty(shape, dtype=dtype, **layout) for shape in shapes]
        number = torch.arange(shapes[0][0], device=model.device)
        with FlopCounterMode(display=False) as counter, _LiveTensors() as tensors:
            step(shadow, *images, number)
    return Cost(counter.get_total_flops(), _held(shadow), tensors.peak)


class _LiveTensors(TorchDispatchMode):
    """Follows the memory of the tensors that are made while it is active.

    Attributes:
        peak: bytes of those that were alive at once, at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # What comes in unseen was there before, and views of it are no memory of their own.
        self._follow((args, kwargs), counted=False)
        result = function(*args, **(kwargs or {}))
        self._follow(result, counted=True)
        return result

    def _follow(self, values: Any, counted: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes() if counted else 0
                self.now += self._sizes[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _held(model: Model) -> dict[str, int]:
    masters = [p for net in model.networks.values() for p in net.parameters()]
    buffers = [b for net in model.networks.values() for b in net.buffers()]
    moments = [
        value
        for optimiser in model.optimisers.values()
        for state in optimiser.state.values()
        for value in state.values()
    ]
    groups = {
        "parameters": masters + buffers,
        "copies in the compute dtype": [c for w in model.weights.values() for c in w.copies],
        "gradients": [p.grad for p in masters if p.grad is not None],
        "Adam's moments": moments,
        "image pools": list(model.memory().values()),
    }
    seen: set[int] = set()
    return {name: _bytes(tensors, seen) for name, tensors in groups.items()}


def _bytes(tensors: Iterable[Any], seen: set[int]) -> int:
    """Of the storages behind ``tensors`` that are not in ``seen``, where they are noted."""
    found = {t.untyped_storage()._cdata: t for t in tensors if isinstance(t, torch.Tensor)}
    new = {key: t.untyped_storage().nbytes() for key, t in found.items() if key not in seen}
    seen.update(new)
    return sum(new.values())
