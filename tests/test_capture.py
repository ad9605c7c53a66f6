"""The step as one CUDA graph: equal to the uncaptured one, and given up without a loss.

On a CPU a stand-in for the graph repeats what was recorded, with what the tensors hold by then.
"""

from contextlib import nullcontext

import pytest
import torch

from bench.probes.peer import kernel_profile
from fastcyclegan.config import TrainConfig
from fastcyclegan.steps import sequential
from fastcyclegan.steps.assembly import make_networks as make_default
from fastcyclegan.steps.capture import WARM_UP, CapturedStep, CudaGraphs
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from fastcyclegan.steps.phases import REPLAY
from fastcyclegan.steps.sequential import SequentialCycleGAN
from fastcyclegan.steps.state import load_train_state, train_state
from stand_ins import streams  # noqa: F401
from test_cyclegan import SIZE, images, make_model, make_networks
from test_gate import everything
from tiny_runs import run_on_data

STEPS_MADE = 60
GPU = torch.device("cuda", 0)


class Again:
    """A stand-in for a CUDA graph: recording does nothing, a replay fills one tensor of losses."""

    def __init__(self, fails: str | None = None) -> None:
        self.fails, self.ran = fails, 0

    def run(self, step):
        self.ran += 1
        return step()

    def record(self, step):
        if self.fails:
            raise RuntimeError(f"{self.fails}\nand many lines more")
        self.step, self.losses = step, torch.empty(8, dtype=torch.float64)
        return self, self.losses

    def replay(self):
        self.losses.copy_(self.step())


def trained(step, model, count, device="cpu", dtype=torch.float64):
    """The losses of ``count`` steps whose learning rate changes on the way."""
    rows = []
    for number in range(count):
        model.set_lr(2e-4 * (1 if number < count // 2 else 0.5))
        batch = [images(1, number, domain, dtype).to(device) for domain in (0, 1)]
        rows.append(step(model, *batch, torch.tensor([number], device=device)).clone())
    return torch.stack(rows)


@pytest.mark.parametrize("fails", [None, "operation not permitted"])
def test_the_same_training_captured_or_not(fails):
    plain, captured = make_model(pool_size=4), make_model(pool_size=4)
    said, graphs, count = [], Again(fails), 12
    step = CapturedStep(STEPS["fused"], said.append, graphs)
    assert torch.equal(trained(STEPS["fused"], plain, count), trained(step, captured, count))
    wanted, got = everything(plain), everything(captured)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert len(said) == 1
    if fails:
        assert graphs.ran == WARM_UP + 1
        assert said[0].endswith(f"runs uncaptured: {fails}")
    else:
        assert graphs.ran == WARM_UP and "captured in one CUDA graph" in said[0]


def test_running_out_of_memory_is_not_taken_for_what_cannot_be_recorded():
    class Full(Again):
        def record(self, step):
            raise torch.OutOfMemoryError("full")

    step = CapturedStep(STEPS["fused"], lambda line: None, Full())
    with pytest.raises(torch.OutOfMemoryError):
        trained(step, make_model(), WARM_UP + 1)


@pytest.mark.parametrize("ends", [False, True])
def test_torch_is_told_of_a_capture_that_failed(streams, monkeypatch, ends):  # noqa: F811
    """Whose end fails too, unless what failed had nothing to do with the GPU."""
    told = []

    class Capture:
        def __init__(self, graph, pool=None, stream=None):
            self.stream = stream

        def __enter__(self):
            streams.now = self.stream

        def __exit__(self, kind, error, trace):
            if error and not ends:
                raise RuntimeError("failed due to a previous error")
            told.append("a capture ended")

    def end(device, pool):
        told.append((device, pool))
        if ends:
            raise RuntimeError("not recording to it")

    def fails():
        raise RuntimeError("no item while capturing\nand more")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *given: told.append(given))
    graphs, here = CudaGraphs(torch.device("cpu")), streams.now
    with pytest.raises(RuntimeError) as caught:
        graphs.record(fails)
    assert "no item while capturing" in str(caught.value if ends else caught.value.__context__)
    assert streams.now is here
    of_pool = (None, (0, 7))
    assert told == (["a capture ended", of_pool] if ends else [of_pool] * 2 + ["a capture ended"])


def test_the_reason_is_what_failed_first():
    class Failing(Again):
        def record(self, step):
            try:
                raise RuntimeError("no item while capturing\nand more")
            finally:
                raise RuntimeError("failed due to a previous error")

    said = []
    trained(CapturedStep(STEPS["fused"], said.append, Failing()), make_model(), WARM_UP + 1)
    assert said[0].endswith("runs uncaptured: no item while capturing")


def test_a_replay_is_one_range_and_its_phases_are_none():
    class Watching(Again):
        def record(self, step):
            model.phase("recording")
            assert "recording" not in seen
            return super().record(step)

    model, seen = make_model(), []
    model.phase = lambda name: seen.append(name) or nullcontext()
    step = CapturedStep(STEPS["fused"], lambda line: None, Watching())
    trained(step, model, WARM_UP)
    assert "G_forward" in seen and REPLAY not in seen
    seen.clear()
    trained(step, model, 1)
    assert seen[0] == REPLAY


def test_the_state_is_loaded_into_the_tensors_that_a_graph_knows():
    model = make_model()
    trained(STEPS["fused"], model, 2)
    known = {name: tensor.data_ptr() for name, tensor in train_state(model).items()}
    kept = {name: tensor.clone() for name, tensor in train_state(model).items()}
    trained(STEPS["fused"], model, 2)
    load_train_state(model, kept)
    again = train_state(model)
    assert {name: tensor.data_ptr() for name, tensor in again.items()} == known
    assert all(torch.equal(again[name], kept[name]) for name in kept)


def test_a_cpu_refuses_to_capture(here, capsys):
    assert run_on_data("--steps", "2", "--cuda_graph", "on") == 2
    assert "--cuda_graph on: cpu has no CUDA graphs; leave it out" in capsys.readouterr().err
    assert run_on_data("--steps", "2", "--cuda_graph", "off") == 0


@pytest.mark.cuda
@pytest.mark.filterwarnings("error:This instance was constructed with capturable")
@pytest.mark.parametrize("dropout", [False, True])
def test_what_a_gpu_cannot_capture_is_told_and_goes_on(dropout, deterministic):
    """As if nobody had tried, torch's generator and what several streams use included."""
    shape, rows, said = (3, SIZE, SIZE), [], []

    def looking(model, *given):
        losses = STEPS["fused"](model, *given)
        if torch.cuda.is_current_stream_capturing():
            losses[0].item()
        return losses

    for step in (STEPS["fused"], CapturedStep(looking, said.append, CudaGraphs(GPU))):
        nets = make_networks(torch.float32, dropout=dropout)
        on_gpu = {name: net.to(GPU) for name, net in nets.items()}
        model = CycleGAN(on_gpu, Settings(pool_size=4), shape, shape)
        torch.manual_seed(0)
        rows.append(trained(step, model, WARM_UP + 4, GPU, torch.float32))
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
    (line,) = said
    assert "runs uncaptured: " in line and "captur" in line.partition("uncaptured: ")[2]
    assert torch.equal(*rows)
    # nothing that another stream has used is kept
    other, held = torch.cuda.Stream(), "active_bytes.all.current"
    before = torch.cuda.memory_stats()[held]
    for _ in range(3):
        torch.empty(2**20, device=GPU).record_stream(other)
        torch.cuda.synchronize()
    torch.empty(2**20, device=GPU)
    assert torch.cuda.memory_stats()[held] < before + 2**22


@pytest.mark.cuda
def test_no_layout_is_changed_in_a_step():
    """The default networks in bf16 at 256 pixels: no kernel between NCHW and NHWC is launched."""
    config, dtype = TrainConfig(), torch.bfloat16
    model = CycleGAN(make_default(config, GPU), Settings(dtype=dtype), *[(3, 256, 256)] * 2)
    images = torch.randn(2, 256, 256, 3, device=GPU, dtype=dtype).tanh().permute(0, 3, 1, 2)
    number = torch.zeros(1, dtype=torch.int64, device=GPU)
    found = kernel_profile(lambda: STEPS["fused"](model, *images.split(1), number), GPU, 1)
    classes = {row["name"]: row["launches"] for row in found["classes"]}
    assert classes["conv"] > 100 and "layout change" not in classes, found["top_kernels"]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("system", [CycleGAN, SequentialCycleGAN])
def test_captured_equals_uncaptured_bit_for_bit(system, dtype, norm, deterministic):
    """60 steps that cross the filling of the pool and a change of the rate; replays draw anew."""
    shape = (3, SIZE, SIZE)
    settings = Settings(pool_size=8, dtype=dtype)
    step = sequential.fused_step if system is SequentialCycleGAN else STEPS["fused"]
    models, said = [], []
    for _ in range(2):
        networks = make_networks(torch.float32, norm=norm)
        on_gpu = {name: net.to(GPU) for name, net in networks.items()}
        models.append(system(on_gpu, settings, shape, shape))
    captured = CapturedStep(step, said.append, CudaGraphs(GPU))
    wanted = trained(step, models[0], STEPS_MADE, "cuda", dtype)
    got = trained(captured, models[1], STEPS_MADE, "cuda", dtype)
    assert "captured in one CUDA graph" in said[0]
    assert torch.equal(got, wanted)
    states = [everything(model) for model in models]
    assert all(torch.equal(states[1][name], states[0][name]) for name in states[0])
