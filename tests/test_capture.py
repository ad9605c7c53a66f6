"""The step as one CUDA graph: equal to the uncaptured one, and given up without a loss.

On a CPU a stand-in for the graph repeats what was recorded, with what the tensors hold by then.
"""

from contextlib import nullcontext

import pytest
import torch

from fastcyclegan.steps.capture import WARM_UP, CapturedStep, CudaGraphs
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from fastcyclegan.steps.phases import REPLAY
from fastcyclegan.steps.state import load_train_state, train_state
from test_cyclegan import SIZE, images, make_model, make_networks
from test_gate import everything
from tiny_runs import run_on_data

STEPS_MADE = 60


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


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_captured_equals_uncaptured_bit_for_bit(dtype, norm, deterministic):
    """60 steps that cross the filling of the pool and a change of the rate; replays draw anew."""
    shape = (3, SIZE, SIZE)
    settings = Settings(pool_size=8, dtype=dtype)
    models, said = [], []
    for _ in range(2):
        networks = make_networks(torch.float32, norm=norm)
        on_gpu = {name: net.to("cuda") for name, net in networks.items()}
        models.append(CycleGAN(on_gpu, settings, shape, shape))
    captured = CapturedStep(STEPS["fused"], said.append, CudaGraphs(torch.device("cuda", 0)))
    wanted = trained(STEPS["fused"], models[0], STEPS_MADE, "cuda", dtype)
    got = trained(captured, models[1], STEPS_MADE, "cuda", dtype)
    assert "captured in one CUDA graph" in said[0]
    assert torch.equal(got, wanted)
    states = [everything(model) for model in models]
    assert all(torch.equal(states[1][name], states[0][name]) for name in states[0])
