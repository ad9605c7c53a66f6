"""How an op is measured: what the files bench_<op>.py share.

Providers: ``triton`` the kernels, ``ref`` the plain reference, ``compile`` torch.compile of it,
``native`` what PyTorch's own modules or a plain loop make of it. On a GPU times are those of graph
replays; on a CPU, where the kernels do not run, those of calls, with small shapes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
import torch
from torch._functorch import config as functorch

from bench.ceilings import DEVICE, copy_gb_per_s, lack_of_compiler, matmul_tflop_per_s
from bench.probes.timing import (
    Body,
    calls_per_graph,
    capture,
    cold_us,
    free_memory,
    graph_us,
    l2_bytes,
    peak_bytes,
    repeated,
    spread,
)
from bench.recorded import norm_flops
from bench.rounds import round_of, round_us

PROVIDERS = ("triton", "compile", "ref", "native")
MODES = ("fwd", "bwd", "fwd_bwd")
ROUNDS, WARM_UP = 20, 2
# Of the gradients of PyTorch's own, by their root mean square: in bf16 some of its outputs are on
# the other side of the ReLU, which makes 0.04 of a norm's.
NATIVE_ERROR = 0.1


class ImageCase(NamedTuple):
    """A batch of images, and the pixels of reflection around them."""

    shape: tuple[int, int, int, int]
    pad: int = 0
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        words = ["x".join(str(n) for n in self.shape), str(self.dtype).removeprefix("torch.")]
        return "-".join(words + [f"pad{self.pad}"] * (self.pad > 0))


class Measured(Protocol):
    """One case with one provider."""

    def body(self, mode: str) -> Body:
        """A function that runs ``mode`` once; both are called within :func:`capture_stream`."""

    def error(self) -> dict[str, float]:
        """Largest error by result, against fp64, in units of the largest true value."""


class Forward:
    """An op without gradient: ``call`` runs it, ``check`` says how far its result is off."""

    def __init__(
        self,
        call: Callable[[], object],
        check: Callable[[], dict[str, float]],
    ) -> None:
        self.call, self.error = call, check

    def body(self, mode: str) -> Body:
        return torch.no_grad()(self.call)


class Differentiable:
    """An op with gradients.

    Args:
        function: of the inputs, returns a tuple of outputs; each gets a gradient.
        truth: the same in plain PyTorch, called in fp64.
        inputs: leaves that require a gradient.
        provider: ``compile`` compiles ``function``.
    """

    def __init__(
        self,
        function: Callable[..., tuple],
        truth: Callable[..., tuple],
        inputs: Sequence[torch.Tensor],
        provider: str,
    ) -> None:
        self.inputs, self.truth = inputs, truth
        # Mode bwd runs backward of one forward many times.
        functorch.donated_buffer = False
        function = compiled(function, provider)
        self.forward: Callable[[], tuple] = lambda: function(*inputs)
        draw = torch.Generator(inputs[0].device).manual_seed(1)
        self.dys = [random_image(y.shape, y.dtype, draw) for y in self.forward()]

    def gradients(self, outputs: tuple, retain: bool = False) -> tuple:
        return torch.autograd.grad(outputs, self.inputs, self.dys, retain_graph=retain)

    def body(self, mode: str) -> Body:
        if mode == "fwd":
            return torch.no_grad()(self.forward)
        if mode == "fwd_bwd":
            return lambda: self.gradients(self.forward())
        outputs = self.forward()
        return lambda: self.gradients(outputs, retain=True)

    def error(self) -> dict[str, float]:
        """The largest of all outputs, y, and of the gradients to all inputs, dx.

        ``dx_rms``: the root mean square of the latter's, in units of that of the true gradient.
        """
        outputs = self.forward()
        found = {"y": [y.detach() for y in outputs], "dx": self.gradients(outputs)}
        inputs = [t.detach().double().requires_grad_() for t in self.inputs]
        true = self.truth(*inputs)
        dys = [dy.double() for dy in self.dys]
        truth = {"y": [y.detach() for y in true], "dx": torch.autograd.grad(true, inputs, dys)}
        errors = {
            name: max(map(relative_error, found[name], tensors)) for name, tensors in truth.items()
        }
        return errors | {"dx_rms": max(map(rms_error, found["dx"], truth["dx"]))}


@contextmanager
def capture_stream(device: torch.device) -> Iterator[None]:
    """Within it the stream that graphs are captured on is the current one.

    Backward runs on the stream of its forward, which must be the one that is captured.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.graph.default_capture_stream or torch.cuda.Stream()
    torch.cuda.graph.default_capture_stream = stream
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def replayed_us(run: Measured, mode: str) -> dict[str, float]:
    """Microseconds per call: median, 10th and 90th percentile."""
    with capture_stream(DEVICE):
        return graph_us(run.body(mode), DEVICE)


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest error in units of the largest true value, to three digits."""
    return float(f"{(found.double() - truth).abs().max() / truth.abs().max():.3g}")


def rms_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square of the error in units of that of the true values, to three digits."""
    return float(f"{(found.double() - truth).norm() / truth.norm():.3g}")


def random_image(shape: Sequence[int], dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    """(N, C, H, W) in channels_last, of mean 1 and standard deviation 2."""
    n, c, h, w = shape
    x = torch.randn((n, h, w, c), device=draw.device, generator=draw) * 2 + 1
    return x.to(dtype).permute(0, 3, 1, 2)


def compiled(function: Callable[..., Any], provider: str) -> Callable[..., Any]:
    """The function, for provider ``compile`` compiled."""
    if provider != "compile":
        return function
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


@dataclass(frozen=True, eq=False)
class OpBench:
    """The bench of one op.

    Args:
        name: of the op.
        run: (case, provider) to what can be measured; keeps to the device of ``DEVICE``.
        counted_bytes: of (case, mode), those that the kernels must move, partial sums left out.
        cases: the networks' real ones and one beyond the L2 cache; ``small`` ones for a CPU.
        modes, providers: what there is of them.
        largest_error: relative to the largest true value; a row that is further off is refused. The
            default is a few ulp of bf16.
        is_norm: its arithmetic is counted, as that of a norm.
    """

    name: str
    run: Callable[[Any, str], Measured]
    counted_bytes: Callable[[Any, str], int]
    cases: Sequence[Any]
    small: Sequence[Any]
    modes: Sequence[str] = MODES
    providers: Sequence[str] = PROVIDERS
    largest_error: float = 2.0**-5
    is_norm: bool = False

    @property
    def pairs(self) -> list[tuple[Any, str]]:
        """(case, provider) of all that this machine can run."""
        cuda = DEVICE.type == "cuda"
        providers = [p for p in self.providers if cuda or p != "triton"]
        return [(case, p) for case in (self.cases if cuda else self.small) for p in providers]

    def parametrize(self, function: Callable[..., None]) -> Callable[..., None]:
        """A bench function with an argument ``row``, once for each."""
        rows = [(case, p, mode) for case, p in self.pairs for mode in self.modes]
        names = ["-".join(str(part) for part in row) for row in rows]
        return pytest.mark.parametrize("row", rows, ids=names)(function)

    def bench(self, benchmark: Any, row: tuple[Any, str, str]) -> None:
        """Wall clock of a round of calls; ``extra_info["us"]`` is that of one call in it."""
        case, provider, mode = row
        if lack := missing(provider):
            pytest.skip(lack)
        run = _last_run(self, case, provider)
        error = self.agreed(run, provider)
        free_memory(DEVICE)
        with capture_stream(DEVICE):
            body = run.body(mode)  # as long as it is replayed
            taken = self._taken(body, case, mode)
            each = calls_per_graph(body, DEVICE)
            replay = capture(repeated(body, each), DEVICE)
        replays, samples = round_of(replay), []
        benchmark.group = f"op, {self.name}, {mode}, {case}, {DEVICE}"
        benchmark.pedantic(
            lambda: samples.append(round_us(replay, replays)), rounds=ROUNDS, warmup_rounds=WARM_UP
        )
        calls = each * replays
        us = spread([sample / calls for sample in samples[WARM_UP:]])
        figures = self._figures(us, case, mode) | taken
        benchmark.extra_info |= figures | {"error": error, "calls_per_round": calls}

    def agreed(self, run: Measured, provider: str) -> dict[str, float]:
        """The errors of ``run``, all small: else its figures would mean nothing.

        Raises:
            AssertionError: an error is too large.
        """
        error = run.error()
        bounds = dict.fromkeys(error, self.largest_error)
        if provider == "native":
            bounds |= {"dx": float("inf"), "dx_rms": NATIVE_ERROR}
        wrong = [name for name, value in error.items() if not value <= bounds[name]]
        assert not wrong, f"{self.name}, {provider}: {error} is off; nothing is recorded"
        return error

    def _taken(self, body: Body, case: Any, mode: str) -> dict[str, Any]:
        """Memory, and ``cold_us`` of a GPU: with nothing of the inputs in its L2 cache."""
        fits = DEVICE.type == "cuda" and self.counted_bytes(case, mode) < 2 * l2_bytes(DEVICE)
        cold = {"cold_us": cold_us(body, DEVICE)} if fits else {}
        return cold | {"peak_MiB": peak_bytes(body, DEVICE) / 2**20}

    def _figures(self, us: dict[str, float], case: Any, mode: str) -> dict[str, Any]:
        """What follows from the time of a call."""
        count = self.counted_bytes(case, mode)
        gb_per_s = count / us["median"] / 1e3
        figures = {"us": us, "counted_bytes": count, "GB_per_s": round(gb_per_s, 1)}
        figures |= {"of_copy": round(gb_per_s / copy_gb_per_s(), 3)}
        if self.is_norm:
            reached = norm_flops(str(case), mode) / us["median"] / 1e6
            of_matmul = reached / matmul_tflop_per_s(case.dtype)
            figures |= {"TFLOP_per_s": reached, "of_matmul": of_matmul}
        return figures

    def rows_of(self, case: Any, provider: str) -> list[dict[str, Any]]:
        """The rows of all modes."""
        run, rows = self.run(case, provider), []
        error = self.agreed(run, provider)
        for mode in self.modes:
            with capture_stream(DEVICE):
                body = run.body(mode)
                taken, us = self._taken(body, case, mode), graph_us(body, DEVICE)
            row = {"case": str(case), "provider": provider, "mode": mode}
            rows.append(row | self._figures(us, case, mode) | taken | {"error": error})
        return rows

    def record(
        self, pairs: Sequence[tuple[Any, str]], out: Path, commit: str | None
    ) -> dict[str, Any]:
        """Machine, copy bandwidth and the rows of each pair; written after every one."""
        from bench.probes.__main__ import machine

        result: dict[str, Any] = {"op": self.name, "machine": machine(DEVICE, commit)}
        result |= {"copy_GB_per_s": copy_gb_per_s(), "rows": []}
        out.parent.mkdir(parents=True, exist_ok=True)
        for case, provider in pairs:
            failed = missing(provider)
            try:
                result["rows"] += [] if failed else self.rows_of(case, provider)
            except (RuntimeError, AssertionError) as error:
                failed = str(error)[:300]
            if failed:
                row = {"case": str(case), "provider": provider, "failed": failed}
                result["rows"].append(row)
            free_memory(DEVICE)
            out.write_text(json.dumps(result, indent=1) + "\n")
        return result

    def main(self, quick: Sequence[Any] = ()) -> None:
        """The command ``python -m bench.bench_<op> OUT.json``; ``quick`` are the cases to keep."""
        parser = argparse.ArgumentParser(prog=f"python -m bench.bench_{self.name}")
        parser.add_argument("out", type=Path)
        if quick:
            parser.add_argument("--quick", action="store_true", help="a few cases only")
        parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
        parser.add_argument("--commit", help="recorded where the tree has no git history")
        args = parser.parse_args()
        pairs = [(case, p) for case, p in self.pairs if p in args.providers]
        if quick and args.quick and DEVICE.type == "cuda":
            pairs = [(case, p) for case, p in pairs if case in quick]
        print(table(self.record(pairs, args.out, args.commit)))


def missing(provider: str) -> str | None:
    """Why ``provider`` cannot be measured here: no compiler, or no triton. None where it can."""
    return lack_of_compiler(DEVICE) if provider in ("compile", "triton") else None


@lru_cache(maxsize=1)
def _last_run(op: OpBench, case: Any, provider: str) -> Measured:
    """The modes of one case and provider come one after the other and share what was compiled."""
    return op.run(case, provider)


def table(result: dict[str, Any]) -> str:
    """One line per case and mode: us of every provider, and what the first of them reaches."""
    rows = [row for row in result["rows"] if "us" in row]
    us = {(row["case"], row["mode"], row["provider"]): row["us"]["median"] for row in rows}
    first = rows[0]["provider"] if rows else ""
    lines = [f"copy {result['copy_GB_per_s']} GB/s; us of {', '.join(PROVIDERS)}; {first} reaches"]
    for row in rows:
        if row["provider"] == first:
            key = row["case"], row["mode"]
            times = " ".join(f"{us.get((*key, p), float('nan')):9.2f}" for p in PROVIDERS)
            reached = f"{row['GB_per_s']:7.0f} GB/s {row['of_copy']:6.1%}"
            lines.append(f"{row['case']:36} {row['mode']:8} {times} {reached} {row['error']}")
    lines += [str(row) for row in result["rows"] if "failed" in row]
    return "\n".join(lines)
