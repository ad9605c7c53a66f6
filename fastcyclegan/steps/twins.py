"""Twin networks beside each other: two computations that need nothing of one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class Twins:
    """Calls a function twice: one call after the other, or on two streams of a GPU.

    Autograd computes each gradient on the stream of its forward pass, so that the backward passes
    lie beside each other too. A CUDA graph that captures the calls keeps the fork.

    Args:
        device: where the function computes.
        concurrent: on two streams; for CUDA only.
    """

    def __init__(self, device: torch.device, concurrent: bool = False) -> None:
        self._other = torch.cuda.Stream(device) if concurrent else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Twins:
        """A stream cannot be copied: the copy makes one call after the other."""
        return Twins(torch.device("cpu"))

    def __call__(
        self, function: Callable[..., Result], first: Sequence[Any], second: Sequence[Any]
    ) -> tuple[Result, Result]:
        """``function(*first), function(*second)``."""
        if self._other is None or torch.compiler.is_compiling():
            return function(*first), function(*second)
        here = torch.cuda.current_stream(self._other.device)
        self._other.wait_stream(here)
        results = [function(*first)]
        with torch.cuda.stream(self._other):
            results.append(function(*second))
        here.wait_stream(self._other)
        # Memory is used again in the order of the stream that it was taken on.
        _used_on(self._other, second)
        _used_on(here, results[1])
        return results[0], results[1]


def _used_on(stream: torch.cuda.Stream, values: Any) -> None:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            value.record_stream(stream)
