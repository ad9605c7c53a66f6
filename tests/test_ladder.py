"""A ladder of rows in one process: what is recorded of each, what is refused, what is skipped."""

from types import SimpleNamespace

import pytest
import torch

from bench import examples, jz
from bench.ladder import Ladder
from bench.our_step import LARGEST_ERROR
from bench.step_rows import Row, missing_peer
from test_step_rows import BF16, CYCLEGAN, DCGAN

ROWS = [Row("peer", peer={}), Row("reference", {"impl": "reference"}), Row("fused", BF16)]


class Benchmark:
    """Stands in for pytest-benchmark's fixture: notes what it is told, and calls it once."""

    def __init__(self) -> None:
        self.extra_info, self.group, self.ran = {}, None, 0

    def pedantic(self, function, rounds: int) -> None:
        assert function() > 0
        self.ran += rounds


@pytest.fixture
def ladder(monkeypatch) -> Ladder:
    monkeypatch.delenv(jz.VARIABLE, raising=False)
    monkeypatch.setattr("bench.ladder.matmul_tflop_per_s", lambda dtype: 0.5)
    return Ladder("step", ROWS, CYCLEGAN, batch=2, rounds=3)


def test_what_is_recorded(ladder):
    benchmark = Benchmark()
    ladder.report(benchmark, ROWS[2])
    found = benchmark.extra_info
    timed = ladder.timed()
    assert list(timed) == ["reference", "fused"] and benchmark.ran == 3
    assert all(len(t.samples) == 3 and t.calls == 1 for t in timed.values())
    assert benchmark.group == "step, tiny, batch 2, cpu"
    assert found["interleaved_median_seconds"] == timed["fused"].seconds > 0
    ratio = timed["reference"].seconds / timed["fused"].seconds
    assert found["speedup_over reference"] == pytest.approx(ratio)
    assert found["of_matmul"] == pytest.approx(found["TFLOP_per_s"] / 0.5)
    assert 0 < found["max_error"] < LARGEST_ERROR["bf16"] and 0.1 < found["peak_MiB"] < 100


def test_a_round_on_a_gpu_is_long_enough_to_be_measured(ladder, monkeypatch):
    """With stand-ins: a step of 2 ms after slower first ones, so that three make a round."""
    begun = SimpleNamespace(step=None, peak=123)
    monkeypatch.setattr("bench.ladder.DEVICE", torch.device("cuda"))
    monkeypatch.setattr("bench.ladder.begin", lambda row, size, batch: begun)

    def elapsed_ms(step, device, calls: int) -> list[float]:
        return [9.0] * (calls > 3) + [2.0] * calls

    monkeypatch.setattr("bench.ladder.elapsed_ms", elapsed_ms)
    timed = ladder._begun(ROWS[2])
    assert (timed.calls, timed.peak) == (3, 123) and timed.round() == pytest.approx(0.002)


def test_a_row_that_is_off_is_not_recorded(ladder):
    ladder.timed()["fused"].begun.error = 0.1
    benchmark = Benchmark()
    with pytest.raises(AssertionError, match="nothing is recorded"):
        ladder.report(benchmark, ROWS[2])
    assert not benchmark.ran and not benchmark.extra_info


def test_without_a_compiler_the_other_rows_are_measured(ladder, monkeypatch):
    lack = "no C++ compiler found (install g++)"
    monkeypatch.setattr("bench.step_rows.lack_of_compiler", lambda device: lack)
    ladder.rows = [*ROWS, Row("compiled", {"compile": True})]
    with pytest.raises(pytest.skip.Exception, match="install g"):
        ladder.report(Benchmark(), ladder.rows[3])
    ladder.report(Benchmark(), ROWS[1])
    assert list(ladder.timed()) == ["reference", "fused"]


@pytest.mark.parametrize(("size", "peer"), [(CYCLEGAN, jz), (DCGAN, examples)])
def test_an_absent_peer_is_said_to_be_absent(monkeypatch, tmp_path, size, peer):
    for root in (None, tmp_path):
        monkeypatch.setenv(peer.VARIABLE, str(root)) if root else monkeypatch.delenv(
            peer.VARIABLE, raising=False
        )
        assert missing_peer(ROWS[0], size) == f"{peer.VARIABLE} names no checkout of the peer"
        with pytest.raises(pytest.skip.Exception, match=peer.VARIABLE):
            Ladder("step", ROWS, size, batch=1, rounds=1).report(Benchmark(), ROWS[0])
    assert missing_peer(ROWS[1], size) is None
