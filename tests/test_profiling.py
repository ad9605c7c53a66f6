"""Profiling: the ranges of a step, windows of steps, traces, and what is refused."""

import gzip
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from fastcyclegan import command, profiling, train
from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.profiling import Profiler
from fastcyclegan.runs.identity import identity
from fastcyclegan.steps import compilation, phases
from fastcyclegan.steps.cyclegan import STEPS
from fastcyclegan.steps.phases import PHASES
from tiny_runs import final_state, run_on_data

FUSED = [(0, "step"), *((1, name) for name in PHASES)]
JUDGED = [(1, name) for name in ("pool", "D_forward", "D_backward")]
REFERENCE = [*FUSED[:3], (1, "G_backward"), *JUDGED, *JUDGED, *FUSED[-2:]]


class Recording:
    """Stands in for the nvtx package: notes (depth, name) of each range as it begins."""

    class Domain:
        """What nvtx gives where a tool is attached."""

    def __init__(self, attached: bool) -> None:
        self.attached, self.depth, self.ranges = attached, 0, []
        self.inside_compiled = False

    def get_domain(self):
        return self.Domain() if self.attached else None

    def annotate(self, name: str):
        return self.Range(self, name)

    class Range:
        def __init__(self, recording, name: str) -> None:
            self.recording, self.name = recording, name

        def __enter__(self):
            assert not self.recording.inside_compiled
            self.recording.ranges.append((self.recording.depth, self.name))
            self.recording.depth += 1

        def __exit__(self, *error):
            self.recording.depth -= 1


@pytest.fixture
def recording(monkeypatch) -> Recording:
    stand_in = Recording(attached=False)
    monkeypatch.setattr(phases, "nvtx", stand_in)
    return stand_in


@pytest.mark.parametrize(("impl", "of_a_step"), [("fused", FUSED), ("reference", REFERENCE)])
def test_ranges_names_nesting_and_order(here, recording, impl, of_a_step):
    assert run_on_data("--nvtx", "--steps", "2", "--impl", impl) == 0
    assert recording.ranges == 2 * of_a_step and recording.depth == 0


@pytest.mark.parametrize(
    ("words", "half"),
    [
        (
            "--model dcgan --crop_size 16 --load_size 16 --ngf 4 --ndf 4 --batch_size 4",
            ["G_forward D_forward D_backward D_opt", "G_forward G_backward G_opt"],
        ),
        (
            "--updates sequential --netG resnet_1blocks --ngf 4 --ndf 4 --crop_size 24 "
            "--load_size 24 --dataroot data",
            2 * ["G_forward G_backward G_opt pool D_forward D_backward D_opt"],
        ),
    ],
)
def test_ranges_of_other_updates(here, recording, words, half):
    common = "--device cpu --precision fp32 --steps 2 --nvtx --name a"
    assert command.run(train.main, [*words.split(), *common.split()]) == 0
    names = ["data", *" ".join(half).split()]
    assert recording.ranges == 2 * [(0, "step"), *((1, name) for name in names)]


def test_ranges_are_on_under_a_tool_and_off_without(here, recording):
    assert run_on_data("--steps", "1", "--name", "without") == 0
    assert recording.ranges == []
    recording.attached = True
    assert run_on_data("--steps", "1", "--name", "under") == 0
    assert recording.ranges == FUSED


@pytest.mark.parametrize("scope", compilation.SCOPES)
def test_ranges_stand_around_compiled_calls(here, monkeypatch, recording, scope):
    calls = []

    def compiled(function, **options):
        def call(*args, **kwargs):
            recording.inside_compiled = True
            calls.append(recording.ranges[-1][1])
            try:
                return function(*args, **kwargs)
            finally:
                recording.inside_compiled = False

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("fastcyclegan.training.missing_compiler", lambda device: None)
    words = ["--nvtx", "--steps", "1", "--compile", "--compile_scope", scope]
    assert run_on_data(*words) == 0
    assert recording.ranges == FUSED and set(calls) == {"G_forward", "D_forward"}


def test_backward_runs_on_the_thread_of_its_range(here, monkeypatch, recording):
    enabled = []
    step = STEPS["fused"]

    def watched(*args):
        enabled.append(torch.autograd.is_multithreading_enabled())
        return step(*args)

    monkeypatch.setitem(STEPS, "fused", watched)
    assert run_on_data("--nvtx", "--steps", "1", "--name", "marked") == 0
    assert run_on_data("--steps", "1", "--name", "plain") == 0
    assert enabled == [False, True] and torch.autograd.is_multithreading_enabled()


def spans(path) -> list[tuple[float, float, str]]:
    """(begin, end, name) of each phase and step in a trace, in order of time."""
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    found = [e for e in events if e.get("cat") == "user_annotation" and e["ph"] == "X"]
    named = [e for e in found if e["name"] in ("step", *PHASES)]
    return sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in named)


def test_a_trace_holds_its_steps_and_their_phases(here, capsys):
    assert run_on_data("--steps", "5", "--profile", "torch", "--profile_steps", "1:3") == 0
    path = here / "checkpoints/0001/profile/steps-00000001-00000002.json.gz"
    assert "trace of steps 1 to 2: checkpoints/0001/profile/" in capsys.readouterr().out
    found = spans(path)
    assert [name for *_, name in found] == 2 * ["step", *PHASES]
    for first in (0, 9):
        (begin, end, _), *inner = found[first : first + 9]
        assert all(begin <= b and e <= end for b, e, _ in inner)
        assert all(a[1] <= b[0] for a, b in pairwise(inner))
    assert run_on_data("--steps", "5", "--name", "plain") == 0
    traced, plain = (final_state(here / "checkpoints" / name)[1] for name in ("0001", "plain"))
    assert all(torch.equal(traced[key], plain[key]) for key in plain)


@pytest.mark.parametrize(("steps", "name"), [("20", "10-00000014"), ("12", "10-00000011")])
def test_a_trace_without_a_window_takes_warm_steps(here, steps, name):
    assert run_on_data("--steps", steps, "--profile", "torch", "--crop_size", "24") == 0
    (path,) = (here / "checkpoints/0001/profile").iterdir()
    assert path.name == f"steps-000000{name}.json.gz"


def test_an_interruption_keeps_the_trace_so_far(here, monkeypatch):
    step = STEPS["fused"]

    def fails_in_step_3(model, real_A, real_B, number):
        if int(number[0]) == 3:
            raise KeyboardInterrupt
        return step(model, real_A, real_B, number)

    monkeypatch.setitem(STEPS, "fused", fails_in_step_3)
    words = ["--steps", "6", "--profile", "torch", "--profile_steps", "2:6"]
    assert run_on_data(*words) == command.INTERRUPTED
    (path,) = (here / "checkpoints/0001/profile").iterdir()
    assert path.name == "steps-00000002-00000003.json.gz"
    assert len(spans(path)) == 9 + 2


def test_a_trace_that_cannot_be_written_ends_no_training(here, capsys):
    assert run_on_data("--steps", "1", "--name", "a") == 0
    (here / "checkpoints/a/profile").write_text("in the way")
    assert run_on_data("--steps", "3", "--name", "a", "--profile", "torch") == 0
    out = capsys.readouterr().out
    assert "the trace was not written (File exists)" in out and "done: weights" in out


@pytest.mark.parametrize("end", [4, 6])
def test_windows_are_bracketed_by_the_cuda_profiler(monkeypatch, tmp_path, end):
    """Start and stop, each behind a synchronisation; also where the training ends the window."""
    calls = []
    noted = {
        name: lambda *args, name=name: calls.append(name)
        for name in ("cudaProfilerStart", "cudaProfilerStop", "synchronize")
    }
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(**noted))
    monkeypatch.setattr(torch.cuda, "synchronize", noted["synchronize"])
    config = TrainConfig(profile_steps=f"2:{end}")
    with Profiler(config, torch.device("cuda", 0), 0, 6, tmp_path, print) as profiler:
        for step in range(6):
            with profiler.step(step):
                calls.append(step)
    window = list(range(2, end))
    assert calls == [
        *(0, 1, "synchronize", "cudaProfilerStart"),
        *(*window, "synchronize", "cudaProfilerStop"),
        *range(end, 6),
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--profile_steps 1:3", "add --profile torch to record a trace"),
        ("--profile torch --profile_steps 3:5", "3:5: the training ends after step 3"),
        ("--profile torch --profile_steps 3", "--profile_steps 3: not A:B"),
        ("--profile torch --profile_steps 3:3", "--profile_steps 3:3: not A:B with A below B"),
        ("--profile torch --profile_steps a:b", "--profile_steps a:b: not A:B"),
        ("--profile perf", "--profile perf: not one of torch"),
        ("--nvtx --profile torch", "choose one"),
    ],
)
def test_what_is_refused_writes_nothing(here, capsys, words, said):
    assert run_on_data("--steps", "4", *words.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (here / "checkpoints").exists()


def test_a_window_that_lies_behind_is_refused(here, capsys):
    assert run_on_data("--steps", "3", "--name", "a") == 0
    words = ["--steps", "6", "--name", "a", "--profile", "torch", "--profile_steps"]
    assert run_on_data(*words, "1:4") == 2
    assert "--profile_steps 1:4: the training continues at step 3" in capsys.readouterr().err
    assert run_on_data(*words, "3:5") == 0
    assert (here / "checkpoints/a/profile/steps-00000003-00000004.json.gz").is_file()


def test_profiling_is_no_part_of_what_a_run_is():
    profiled = TrainConfig(nvtx=True, profile="torch", profile_steps="1:2")
    assert identity(profiled, "data", "fp32") == identity(TrainConfig(), "data", "fp32")


def test_check_profiling_takes_what_a_gpu_can_do():
    config = TrainConfig(profile_steps="1:4")
    profiling.check_profiling(config, torch.device("cuda"), 4)
    with pytest.raises(UserError, match="ends after step 2"):
        profiling.check_profiling(config, torch.device("cuda"), 3)
