"""What a row of tests/op_specs.py says of an op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastcyclegan.kernels.norm_config import Config
from op_inputs import Shape

Tensors = dict[str, torch.Tensor]
# For a call that must be refused: tensors and options instead of valid ones, the error, its words.
Refused = tuple[Callable[[Tensors], dict[str, Any]], type[Exception], str]


@dataclass(frozen=True, eq=False)
class Norm:
    """What is normalised: pixels over ``axes``; ``statistics`` gives (mean, variance) of x.

    ``config`` divides them into runs, by channels and bytes of an element.
    """

    axes: tuple[int, ...]
    statistics: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    config: Callable[[int, int], Config]


@dataclass(frozen=True, eq=False)
class Op:
    """One op.

    Attributes:
        public: called as ``public(**tensors, **options, impl=...)``.
        oracle: called as ``oracle(arrays, options, dys)``, everything in fp64; results by name:
            outputs, gradients (``dx`` of ``x``) and inputs after a change in place. It may give
            more than there is. ``dys`` is empty for an op that is not differentiable.
        variants: options by name; ``make`` takes them apart.
        shapes: odd ones, for every variant that fits; the first is for the checks that take long.
        nets: pairs (variant, shape) as the networks have them.
        main: the variants for opcheck and compilation.
        make: from (variant, shape, dtype, device) the tensors and the options of a valid call.
        outputs: names of what ``public`` returns.
        differentiable: whether the floating inputs that are not in ``mutated`` have gradients.
        mutated: inputs that are changed in place.
        any_layout: 4-D inputs that need not be channels_last.
        exact: results that have the reference's bits.
        bad: calls that the kernels and the reference refuse, in the same words.
        unsupported: calls that the kernels refuse; if the reference takes one, they say so.
    """

    name: str
    public: Callable[..., Any]
    oracle: Callable[[dict, dict, list[np.ndarray]], dict[str, np.ndarray]]
    variants: dict[str, dict[str, Any]]
    shapes: tuple[Shape, ...]
    nets: tuple[tuple[str, Shape], ...]
    main: tuple[str, ...]
    make: Callable[..., tuple[Tensors, dict[str, Any]]]
    outputs: tuple[str, ...] = ("y",)
    differentiable: bool = True
    mutated: tuple[str, ...] = ()
    any_layout: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    norm: Norm | None = None
    bad: Sequence[Refused] = field(default_factory=list)
    unsupported: Sequence[Refused] = field(default_factory=list)

    def case(
        self, variant: str, shape: Shape, dtype: torch.dtype, device: str
    ) -> tuple[Tensors, dict[str, Any]]:
        """Tensors and options of a valid call."""
        return self.make(dict(self.variants[variant]), shape, dtype, device)

    def shapes_of(self, variant: str) -> list[Shape]:
        """The shapes that a variant can have, and the smallest image that can be padded so."""
        fitting = [shape for shape in self.shapes if self.fitted(variant, shape) == shape]
        smallest = self.fitted(variant, (*self.shapes[0][:2], 1, 2))
        return fitting + [smallest] * ("pad" in self.variants[variant])

    def fitted(self, variant: str, shape: Shape) -> Shape:
        """``shape``, or a higher or wider one: a reflection needs more pixels than its width."""
        *start, h, w = shape
        pad = self.variants[variant].get("pad", 0)
        return (*start, h, w) if pad < min(h, w) else (*start, max(h, pad + 1), max(w, pad + 2))
