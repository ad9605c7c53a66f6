"""The benches of the ops: what they count, and that every provider computes the same."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import (
    bench_augment,
    bench_batch_norm,
    bench_image_pool,
    bench_instance_norm,
    bench_reflection_pad,
    op_bench,
)
from bench.op_bench import DEVICE, Differentiable, ImageCase, table
from bench.probes import timing
from bench.recorded import norm_flops
from fastcyclegan.kernels.augment import augment_ref
from fastcyclegan.kernels.philox import POOL_A, philox_ref
from house_rules import ROOT
from stand_ins import streams  # noqa: F401

MODULES = (
    bench_augment,
    bench_batch_norm,
    bench_image_pool,
    bench_instance_norm,
    bench_reflection_pad,
)
OPS = [module.OP for module in MODULES]
CPU = torch.device("cpu")


@pytest.mark.parametrize("provider", ["ref", "native"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_providers_agree(op, provider):
    for case in op.small:
        assert op.agreed(op.run(case, provider), provider)


class Wrong:
    """A result that is off."""

    def __init__(self, **error: float) -> None:
        self._error = error

    def error(self) -> dict[str, float]:
        return self._error


def test_no_output_and_no_gradient_is_left_out():
    """The second output is off by a fifth, or the gradient to the second input by a tenth."""

    def truth(x, weight):
        return x * 2, x * weight

    def off_in_output(x, weight):
        return x * 2, x * weight + 0.2 * (x * weight).detach()

    def off_in_gradient(x, weight):
        still = x.detach() * (weight - weight.detach())
        return x * 2, x * weight.detach() + 0.9 * still

    inputs = [torch.rand(1, 2, 4, 4).requires_grad_(), torch.ones(1).requires_grad_()]
    found = [
        Differentiable(f, truth, inputs, "ref").error() for f in (off_in_output, off_in_gradient)
    ]
    assert found[0]["y"] == pytest.approx(0.2, abs=1e-3) and found[0]["dx"] < 1e-5
    assert found[1]["dx"] == pytest.approx(0.1, abs=1e-3) and found[1]["y"] < 1e-5


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_what_is_off_is_not_recorded(op, tmp_path, monkeypatch):
    for off in (2 * op.largest_error + 1e-9, float("nan")):
        with pytest.raises(AssertionError, match="nothing is recorded"):
            op.agreed(Wrong(y=0.0, z=off), "ref")
    monkeypatch.setattr("bench.op_bench.copy_gb_per_s", lambda: 100.0)
    wrong = replace(op, run=lambda case, provider: Wrong(y=1.0))
    result = wrong.record([(op.small[0], "ref")], tmp_path / "out.json", None)
    (row,) = result["rows"]
    assert "us" not in row and "nothing is recorded" in row["failed"]
    benchmark = SimpleNamespace(extra_info={})
    with pytest.raises(AssertionError, match="nothing is recorded"):
        wrong.bench(benchmark, (op.small[0], "ref", op.modes[0]))
    assert benchmark.extra_info == {}


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_rows(op, monkeypatch):
    case = op.small[0]
    monkeypatch.setattr("bench.op_bench.copy_gb_per_s", lambda: 100.0)
    monkeypatch.setattr("bench.op_bench.matmul_tflop_per_s", lambda dtype: 0.5)
    rows = op.rows_of(case, "ref")
    assert [row["mode"] for row in rows] == list(op.modes)
    for row in rows:
        seconds = row["us"]["median"] / 1e6
        assert row["GB_per_s"] == pytest.approx(row["counted_bytes"] / seconds / 1e9, abs=0.06)
        assert row["of_copy"] == pytest.approx(row["GB_per_s"] / 100, abs=0.002)
        assert 0 < row["peak_MiB"] < 10 and "cold_us" not in row
        if op.is_norm:
            reached = norm_flops(str(case), row["mode"]) / seconds / 1e12
            assert row["TFLOP_per_s"] == pytest.approx(reached)
            assert row["of_matmul"] == pytest.approx(reached / 0.5)
    lines = table({"copy_GB_per_s": 100, "rows": rows}).splitlines()
    assert len(lines) == 1 + len(op.modes) and all(str(case) in line for line in lines[1:])


def test_what_is_captured_was_made_on_the_stream_of_the_capture(streams, monkeypatch):  # noqa: F811
    """Backward runs on the stream of its forward, which another capture must not see."""

    class Made:
        def error(self):
            return {"y": 0.0}

        def body(self, mode):
            return lambda made=streams.now.name: (made, streams.now.name)

    def capture(body, device):
        seen.append(body())
        return body

    seen, stand_ins = [], {"DEVICE": torch.device("cuda"), "capture": capture}
    stand_ins |= {"free_memory": lambda device: None, "copy_gb_per_s": lambda: 1.0}
    stand_ins |= {"peak_bytes": lambda body, device: seen.append(body()) or 0}
    stand_ins |= {"graph_us": lambda body, device: {"median": 5e3}, "l2_bytes": lambda device: 0}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(op_bench, name, stand_in)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
    op = replace(OPS[0], run=lambda case, provider: Made())
    benchmark = SimpleNamespace(extra_info={}, pedantic=lambda *given, **options: None)
    op.bench(benchmark, (op.small[0], "ref", "bwd"))
    assert seen == 2 * [("other", "other")] and streams.now.name == "here"
    assert streams.seen == 2 * ["other waits for here", "here waits for other"]


def test_the_most_that_a_call_takes():
    """Of three tensors alive at once; what was there before does not count."""
    x = torch.ones(2**18)
    most = timing.peak_bytes(lambda: [x + 1, x + 2 * (x + 3)], CPU)
    assert most == pytest.approx(3 * x.nbytes, rel=1e-4)
    assert timing.peak_bytes(lambda: x.add_(1), CPU) < 100


def test_emptying_the_cache_is_taken_off(monkeypatch):
    calls = []

    def interleaved(bodies, device, **options):
        bodies["both"]()
        read = {"median": 10.0, "p10": 9.0, "p90": 11.0, "n": 5}
        return {"read": read, "both": {"median": 13.5, "p10": 13.0, "p90": 15.0, "n": 5}}

    monkeypatch.setattr(timing, "interleaved_us", interleaved)
    monkeypatch.setattr(timing, "l2_bytes", lambda device: 4096)
    found = timing.cold_us(lambda: calls.append("body"), CPU)
    assert found == {"median": 3.5, "p10": 3.0, "p90": 5.0, "n": 5} and calls == ["body"]


def test_bytes_of_augment():
    case = ImageCase((2, 3, 8, 6), pad=2)
    pixels, plan, size = bench_augment.draw(case)
    y = augment_ref(pixels, *plan.to(DEVICE), size, case.dtype, pad=2)
    assert bench_augment.counted_bytes(case, "fwd") == 2 * 3 * 8 * 6 + y.numel() * 2


def test_bytes_of_reflection_pad():
    x = torch.zeros(2, 5, 4, 6, dtype=torch.bfloat16)
    y = bench_reflection_pad.PADS["ref"](x, 1)
    forward = bench_reflection_pad.counted_bytes(ImageCase(tuple(x.shape), pad=1), "fwd")
    assert forward == x.nbytes + y.nbytes
    both = bench_reflection_pad.counted_bytes(ImageCase(tuple(x.shape), pad=1), "fwd_bwd")
    assert both == 2 * forward


def test_bytes_of_batch_norm():
    """Outside of backward's three inputs and its result, what three kernels read and write."""
    case = bench_batch_norm.Case((2, 5, 4, 6))
    x = 2 * 5 * 4 * 6 * 2
    assert bench_batch_norm.counted_bytes(case, "fwd") == 3 * x
    assert bench_batch_norm.counted_bytes(case, "bwd") == 5 * x
    assert bench_batch_norm.counted_bytes(case, "fwd_bwd") == 8 * x


def test_every_second_image_of_the_pool_is_swapped():
    """What makes its bytes three times those of the batch."""
    for n in (1, 2, 8):
        coins = philox_ref(bench_image_pool.SEED, POOL_A, bench_image_pool.numbers(n))[0]
        swaps = (coins >= 2**31).flatten()
        assert swaps[::2].all() and not swaps[1::2].any()


def test_every_bench_runs_on_any_machine():
    """What needs a GPU is left out where there is none: nothing else skips it in bench/."""
    command = [sys.executable, "-m", "pytest", "bench/", "--collect-only", "-q", "-m", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout[-500:]
    assert "bench_phases" not in done.stdout and "deselected" in done.stdout
