"""Twin networks beside each other: the fork and the join, and the same training on a GPU."""

import pytest
import torch

from fastcyclegan.steps.capture import CapturedStep, CudaGraphs
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from fastcyclegan.steps.twins import Twins
from stand_ins import streams  # noqa: F401
from test_capture import trained
from test_cyclegan import SIZE, make_networks
from test_gate import everything
from tiny_runs import run_on_data


@pytest.mark.parametrize("concurrent", [False, True])
def test_fork_and_join(streams, concurrent):  # noqa: F811
    def function(x, more):
        streams.seen.append(f"{int(x)} on {streams.now.name}")
        return {"sum": x + more[0]}

    pair = (torch.tensor(1), [torch.tensor(2)]), (torch.tensor(10), [torch.tensor(20)])
    first, second = Twins(torch.device("cpu"), concurrent)(function, *pair)
    assert (int(first["sum"]), int(second["sum"])) == (3, 30)
    if not concurrent:
        assert streams.seen == ["1 on here", "10 on here"]
        return
    assert streams.seen == [
        "other waits for here",
        "1 on here",
        "10 on other",
        "here waits for other",
        "10 is used on other",
        "20 is used on other",
        "30 is used on here",
    ]


def test_it_is_for_cyclegan_on_a_gpu(here, capsys):
    assert run_on_data("--steps", "1", "--twin_streams") == 2
    said = capsys.readouterr().err
    assert "--twin_streams is for CycleGAN's joint updates on a GPU; leave it out" in said


@pytest.mark.cuda
@pytest.mark.parametrize("captured", [False, True])
def test_the_same_training_on_one_stream_or_two(captured, deterministic):
    """60 steps, bit for bit."""
    shape, rows, states = (3, SIZE, SIZE), [], []
    for concurrent in (False, True):
        settings = Settings(pool_size=8, dtype=torch.bfloat16, twin_streams=concurrent)
        nets = {name: net.to("cuda") for name, net in make_networks(torch.float32).items()}
        model, step = CycleGAN(nets, settings, shape, shape), STEPS["fused"]
        if captured:
            step = CapturedStep(step, print, CudaGraphs(torch.device("cuda", 0)))
        rows.append(trained(step, model, 60, "cuda", torch.bfloat16))
        states.append(everything(model))
    assert torch.equal(rows[0], rows[1])
    assert all(torch.equal(states[1][name], states[0][name]) for name in states[0])
