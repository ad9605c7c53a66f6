"""The whole step as one CUDA graph: per step the host launches that graph, and no more.

The first steps run uncaptured, on the stream that is captured later: they are steps of the training
like any other, in which kernels are compiled and memory finds its place. What changes from step to
step reaches the graph through tensors that stay where they are: images, their numbers, the learning
rate, everything that a model holds.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import torch

from fastcyclegan.steps.model import Model, Step
from fastcyclegan.steps.phases import REPLAY, unmarked

WARM_UP = 3


class Replay(Protocol):
    """A recorded computation."""

    def replay(self) -> None:
        """Do it again, with what the tensors hold now that it was recorded with."""


class Recorder(Protocol):
    """Where steps run before they are recorded, and what records one."""

    def run(self, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``step`` returns, from where it could be recorded."""

    def record(self, step: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """``step`` recorded without being done, and the tensor that each replay fills.

        Raises:
            RuntimeError: it does something that cannot be recorded.
        """


class CudaGraphs:
    """Records into a CUDA graph on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def run(self, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``step`` returns, computed on the stream of the graph."""
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = step()
        here.wait_stream(self.stream)
        result.record_stream(here)
        return result

    def record(self, step: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """``step`` as a CUDA graph. Raises RuntimeError, and torch goes on as if nothing was."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # torch.cuda.graph does not leave its stream where the end of the capture fails.
        with torch.cuda.stream(self.stream):
            try:
                with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                    result = step()
            except RuntimeError:
                self._forget(pool)
                raise
        return graph, result

    def _forget(self, pool: tuple[int, int]) -> None:
        """Tell torch of a capture whose end has failed, which leaves that in the middle of it.

        Its allocator would keep what several streams have used, and all that the capture has taken;
        its generator would draw nothing more. As of torch 2.13 nothing public does this.
        """
        device = self.stream.device.index
        with suppress(RuntimeError):  # which there is where the end has not failed
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
            # the generator is let go by a capture that ends
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self.stream):
                torch.zeros((), device=self.stream.device)


class CapturedStep:
    """A step function that records itself after ``WARM_UP`` calls, and is replayed from then on.

    If it cannot be recorded, which is told once, it goes on as it is: recording does nothing to the
    state of the training.

    Args:
        step: called with the model, the images of a batch and their numbers; what these are made of
            must not change in shape, dtype or memory format.
        say: is told in one line when the step is recorded, or why it was not.
        recorder: where to record.
        given_stays: each call is given the same tensors, which the step itself moves on. Otherwise
            what is given is copied to where the graph reads it.
    """

    def __init__(
        self,
        step: Step,
        say: Callable[[str], None],
        recorder: Recorder,
        *,
        given_stays: bool = False,
    ) -> None:
        self._step, self._say, self._recorder = step, say, recorder
        self._given_stays = given_stays
        self._calls = 0
        self._given: list[torch.Tensor] = []
        self._replay: Replay | None = None
        self._losses = torch.empty(0)

    def __call__(self, model: Model, *given: torch.Tensor) -> torch.Tensor:
        """As the step function: the losses, which the next call overwrites."""
        if self._calls > WARM_UP and not self._replay:
            return self._step(model, *given)
        if not self._given:
            self._given = [x if self._given_stays else torch.empty_like(x) for x in given]
        if not self._given_stays:
            torch._foreach_copy_(self._given, list(given))
        if self._calls == WARM_UP:
            self._record(model)
        self._calls += 1
        if not self._replay:
            return self._recorder.run(partial(self._step, model, *self._given))
        with model.phase(REPLAY):
            self._replay.replay()
        return self._losses

    def close(self) -> None:
        """Let go of what was recorded, and of its memory; not to be called again."""
        self._replay, self._given, self._losses = None, [], torch.empty(0)

    def _record(self, model: Model) -> None:
        phase, model.phase = model.phase, unmarked
        try:
            step = partial(self._step, model, *self._given)
            self._replay, self._losses = self._recorder.record(step)
            self._say("the whole step is captured in one CUDA graph")
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            # what was tried comes before the end of the capture, which fails for that
            reason = str(problem.__context__ or problem).strip().partition("\n")[0]
            self._say(f"warning: the step could not be captured, and runs uncaptured: {reason}")
        finally:
            model.phase = phase
