"""The benches of the ops: what they count, and that every provider computes the same."""

import itertools
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
    norm_cases,
    op_bench,
    rounds,
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


class Benchmark:
    """Stands in for pytest-benchmark's fixture: runs the rounds that it is told to."""

    def __init__(self) -> None:
        self.extra_info, self.group = {}, None

    def pedantic(self, function, rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds + warmup_rounds):
            function()


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


def test_the_gradient_of_torchs_own_is_judged_too():
    """Some values on the other side of the ReLU are let pass, half a gradient is not."""
    op = OPS[0]
    assert op.agreed(Wrong(y=0.0, dx=0.5, dx_rms=0.04), "native")
    for error in ({"dx_rms": 0.5, "dx": 0.5}, {"dx_rms": float("nan"), "dx": 0.0}):
        with pytest.raises(AssertionError, match="nothing is recorded"):
            op.agreed(Wrong(y=0.0, **error), "native")

    def halved(x):
        return ((2 * x).detach() + x - x.detach(),)

    given = [torch.rand(1, 2, 4, 4).requires_grad_()]
    error = Differentiable(halved, lambda x: (2 * x,), given, "native").error()
    assert error["y"] < 1e-6 and error["dx_rms"] == pytest.approx(0.5)


def test_no_round_is_too_short_and_the_time_of_a_call_is_that_of_the_rounds(monkeypatch):
    """By a clock that the calls move: quick ones, of which some are quicker."""
    now, durations = [0.0], itertools.cycle([130e-6, 100e-6, 110e-6])

    def call():
        now[0] += next(durations)

    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(op_bench, "copy_gb_per_s", lambda: 1.0)
    made = SimpleNamespace(error=lambda: {"y": 0.0}, body=lambda mode: call)
    monkeypatch.setattr(op_bench, "peak_bytes", lambda body, device: 0)
    op, benchmark = replace(OPS[0], run=lambda case, provider: made, is_norm=False), Benchmark()
    begin, calls = now[0], rounds.round_of(call)
    assert calls * 110e-6 > 1.2 * rounds.ROUND_US / 1e6
    op.bench(benchmark, (op.small[0], "ref", "fwd"))
    found = benchmark.extra_info
    assert found["us"]["n"] == op_bench.ROUNDS and now[0] > begin
    assert found["us"]["median"] == pytest.approx(340 / 3, rel=0.02)
    assert found["calls_per_round"] * found["us"]["p10"] > rounds.ROUND_US


@pytest.mark.parametrize("provider", ["compile", "triton"])
def test_what_needs_a_compiler_is_skipped_where_there_is_none(tmp_path, monkeypatch, provider):
    lack = "no C++ compiler found (install g++)"
    monkeypatch.setattr(op_bench, "lack_of_compiler", lambda device: lack)
    monkeypatch.setattr(op_bench, "copy_gb_per_s", lambda: 1.0)
    op = replace(OPS[0], run=lambda case, provider: Wrong(y=1.0))
    with pytest.raises(pytest.skip.Exception, match="install g"):
        op.bench(Benchmark(), (op.small[0], provider, "fwd"))
    (row,) = op.record([(op.small[0], provider)], tmp_path / "out.json", None)["rows"]
    assert row["failed"] == lack
    assert op_bench.missing("ref") is op_bench.missing("native") is None


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
            return lambda made=streams.now.name: seen.append((made, streams.now.name))

    def capture(body, device):
        body()
        return body

    seen, stand_ins = [], {"DEVICE": torch.device("cuda"), "capture": capture}
    stand_ins |= {"free_memory": lambda device: None, "copy_gb_per_s": lambda: 1.0}
    stand_ins |= {"peak_bytes": lambda body, device: body() or 0}
    stand_ins |= {"calls_per_graph": lambda body, device: 4, "l2_bytes": lambda device: 0}
    stand_ins |= {"round_of": lambda replay: 2, "round_us": lambda replay, replays: 8e3}
    stand_ins |= {"missing": lambda provider: None}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(op_bench, name, stand_in)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
    op = replace(OPS[0], run=lambda case, provider: Made())
    benchmark = Benchmark()
    op.bench(benchmark, (op.small[0], "ref", "bwd"))
    assert set(seen) == {("other", "other")} and streams.now.name == "here"
    assert streams.seen == ["other waits for here", "here waits for other"]
    found = benchmark.extra_info
    assert found["us"]["median"] == 1e3 and found["calls_per_round"] == 8


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


def test_bytes_of_an_instance_norm():
    """Backward reads the gradient and x twice each, and writes dx; a skip as often as x."""
    x, padded = 1 * 2 * 4 * 4 * 2, 1 * 2 * 6 * 6 * 2
    plain = norm_cases.Case((1, 2, 4, 4), pad=1)
    assert norm_cases.counted_bytes(plain, "fwd") == x + x + padded
    assert norm_cases.counted_bytes(plain, "bwd") == 2 * (padded + x) + x
    skipped = plain._replace(act="none", residual=True)
    assert norm_cases.counted_bytes(skipped, "fwd") == x + x + padded + x
    assert norm_cases.counted_bytes(skipped, "fwd_bwd") == 3 * x + padded + 2 * (padded + x) + 4 * x


def test_the_real_shapes_of_norms_are_measured_at_batches_of_1_2_and_8():
    ours = [case for case in norm_cases.CASES if case not in norm_cases.LARGE]
    for cases in (ours, bench_batch_norm.JZ):
        seen = {(str(case._replace(shape=(0, *case.shape[1:]))), case.shape[0]) for case in cases}
        assert seen == {(kind, n) for kind, _ in seen for n in (1, 2, 8)}


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
