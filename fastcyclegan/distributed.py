"""The processes that train together, one per GPU: what each computes of a batch, what all learn.

A training of one process holds :data:`ALONE`, where nothing is sent and nothing is waited for.
Several that have met (``meeting.py``) hold a :class:`Group` each, on PyTorch's process group: NCCL
carries tensors on GPUs, gloo those on the CPU and all that is not a tensor of the training. What is
sent over a group is waited for in one place, so that a process that is gone or silent is always
told as such.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from fastcyclegan.errors import RankLost, SharedStop, Stop, UserError

T = TypeVar("T")


class Pending:
    """A tensor that is on its way."""

    def __init__(self, tensor: torch.Tensor, work: dist.Work | None = None) -> None:
        self._tensor, self._work = tensor, work

    def wait(self) -> torch.Tensor:
        """The tensor; on a GPU the stream waits, not the host. Raises RankLost."""
        if self._work is not None:
            with _lost_is_told():
                self._work.wait()
            self._work = None
        return self._tensor


class Ranks:
    """One process that trains alone; and what a step may ask of any number of them.

    Attributes:
        rank, world: the number of this process, from 0, and how many there are.
    """

    rank, world = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there is anyone to talk to."""
        return False

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's rows of (N, ...), which belongs to the whole batch."""
        return whole

    def gather(self, rows: torch.Tensor) -> Pending:
        """The rows of all processes, (N, ...), from those of each; under way on return."""
        return Pending(rows)

    def sum(self, tensor: torch.Tensor) -> Pending:
        """``tensor`` with the sum over all processes in it; under way on return."""
        return Pending(tensor)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, each of which has as many images of the batch."""
        return tensor

    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put what the first process has in ``tensors`` into those of the others."""

    def told(self, value: T) -> T:
        """What the first process calls with, on all of them."""
        return value

    def loudest(self, signum: int) -> int:
        """The largest number that any process called with, the same for all at the same call."""
        return signum

    def together(self, do: Callable[[], T]) -> T:
        """What ``do`` returns, once it has worked in every process.

        Raises:
            UserError, Stop: it raised that here; SharedStop where it did so in any of several.
        """
        return do()

    def in_turn(self, do: Callable[[], T]) -> T:
        """As :meth:`together`, but the first process of a machine does it before its others."""
        return do()

    def any(self, flag: bool) -> bool:
        """Whether any process calls with True."""
        return flag

    def require_alike(self, facts: dict[str, Any]) -> None:
        """Raise SharedStop in all processes unless all of them call with the same ``facts``."""

    def leave(self) -> None:
        """Say goodbye, when all others do."""


ALONE = Ranks()


class Group(Ranks):
    """One of several processes, all of which make the same calls in the same order.

    Args:
        rank, world: its number and how many there are, in the default process group.
        local_rank: its number on its machine.
    """

    def __init__(self, rank: int, world: int, local_rank: int = 0) -> None:
        self.rank, self.world = rank, world
        self._turn = 0 if rank == 0 else 1 if local_rank == 0 else 2
        self._signal: Pending | None = None

    @property
    def many(self) -> bool:
        """Always, even where it is the only one: it talks to itself."""
        return True

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        """The rank-th of ``world`` equal parts."""
        return whole.chunk(self.world)[self.rank]

    def gather(self, rows: torch.Tensor) -> Pending:
        """In the order of the ranks; 4-D rows are and stay channels_last."""
        images = rows.dim() == 4
        sent = (rows.permute(0, 2, 3, 1) if images else rows).contiguous()
        everything = sent.new_empty((self.world * len(sent), *sent.shape[1:]))
        with _lost_is_told():
            parts = list(everything.chunk(self.world))
            work = dist.all_gather(parts, sent, async_op=True)
        return Pending(everything.permute(0, 3, 1, 2) if images else everything, work)

    def sum(self, tensor: torch.Tensor) -> Pending:
        """The same bits in every process."""
        with _lost_is_told():
            return Pending(tensor, dist.all_reduce(tensor, async_op=True))

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same bits in every process."""
        return self.sum(tensor.clone()).wait() / self.world

    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """One broadcast for each."""
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            with _lost_is_told():
                dist.broadcast(sent, src=0)
            with torch.no_grad():
                tensor.copy_(sent)

    def told(self, value: T) -> T:
        """By way of pickle: these processes trust each other."""
        box = [value]
        with _lost_is_told():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def loudest(self, signum: int) -> int:
        """As of the call before, so that nobody waits: numbers travel while a step computes."""
        before = self._signal
        self._signal = self._maximum(signum)
        return int(before.wait()) if before else 0

    def together(self, do: Callable[[], T]) -> T:
        """Problems are told by the first process."""
        result, problem = None, None
        try:
            result = do()
        except (UserError, Stop) as error:
            problem = error.code, str(error)
        problems = self._everyones(problem)
        if any(problems):
            raise SharedStop(*_named(problems))
        return result

    def in_turn(self, do: Callable[[], T]) -> T:
        """One after the other where that matters: files that all would write.

        The very first process, then the first one of every other machine, then all others: whether
        machines share their disks or not, nobody writes what another one is writing.
        """
        turns = [
            self.together(lambda turn=turn: do() if turn == self._turn else None)
            for turn in range(3)
        ]
        return turns[self._turn]

    def any(self, flag: bool) -> bool:
        """The same everywhere."""
        return any(self._everyones(flag))

    def require_alike(self, facts: dict[str, Any]) -> None:
        """The first process's ``facts`` are what the others' are compared with."""
        first, *others = self._everyones(facts)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other.get(name) != value:
                    there, here = (_shortened(x) for x in (other.get(name), value))
                    raise SharedStop(
                        UserError.code,
                        f"rank {rank} has another {name} ({there}) than rank 0 ({here}): start all "
                        "ranks with the same options and images",
                    )

    def leave(self) -> None:
        """Everything sent has arrived then."""
        if self._signal:
            self._signal.wait()
        dist.destroy_process_group()

    def _maximum(self, number: int) -> Pending:
        tensor = torch.tensor(number)
        with _lost_is_told():
            return Pending(tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True))

    def _everyones(self, value: Any) -> list[Any]:
        values = [None] * self.world
        with _lost_is_told():
            dist.all_gather_object(values, value)
        return values


@contextmanager
def _lost_is_told() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as problem:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise  # nobody is waited for while a step is recorded: it cannot be
        lines = str(problem).splitlines() or [""]
        for line in lines:
            if "out of memory" in line:  # this GPU's, for a buffer of NCCL
                raise torch.OutOfMemoryError(line) from None
        reason = lines[0]
        raise RankLost(
            "another process has ended, or did not answer within --dist_timeout "
            f"({reason.rpartition('] ')[2]})"
        ) from None


def _named(problems: Sequence[tuple[int, str] | None]) -> tuple[int, str]:
    """Exit code and line of the problem that all have, or of the first one, with its rank."""
    rank, (code, message) = next(pair for pair in enumerate(problems) if pair[1])
    alone = rank == 0 or len(set(problems)) == 1
    return code, message if alone else f"rank {rank}: {message}"


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."


@torch.library.custom_op("fastcyclegan::of_all", mutates_args=())
def of_all(row: torch.Tensor) -> torch.Tensor:
    """(world, *row.shape): what all processes call it with; opaque to torch.compile."""
    everyones = row.new_empty((dist.get_world_size(), *row.shape))
    with _lost_is_told():
        dist.all_gather(list(everyones), row.contiguous())
    return everyones


@of_all.register_fake
def _(row: torch.Tensor) -> torch.Tensor:
    return row.new_empty((dist.get_world_size(), *row.shape))


@torch.library.custom_op("fastcyclegan::sum_of_all", mutates_args=())
def sum_of_all(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of what all processes call it with; opaque to torch.compile."""
    total = tensor.clone()
    with _lost_is_told():
        dist.all_reduce(total)
    return total


@sum_of_all.register_fake
def _(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor)
