"""What a step costs: FLOPs as counted by hand, bytes as real tensors take them."""

import pytest
import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.models import build
from fastcyclegan.steps.assembly import architectures
from fastcyclegan.steps.cost import _LiveTensors, step_cost
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from test_cyclegan import SIZE, images, make_networks


def unfilled_model(netG: str, pixels: int, **settings) -> CycleGAN:
    """A model whose weights are whatever lies in memory: only their shapes matter."""
    with torch.device("meta"):
        networks = {name: build(a) for name, a in architectures(TrainConfig(netG=netG)).items()}
    networks = {name: net.to_empty(device="cpu") for name, net in networks.items()}
    shape = (3, pixels, pixels)
    return CycleGAN(networks, Settings(**settings), shape, shape)


def small_model(dtype: torch.dtype) -> CycleGAN:
    shape = (3, SIZE, SIZE)
    return CycleGAN(make_networks(torch.float32), Settings(pool_size=3, dtype=dtype), shape, shape)


# 2 (forward + dgrad + wgrad) of all convolutions, added up by hand from their shapes: no gradient
# to real images, none of the discriminators' weights in the generators' phase.
@pytest.mark.parametrize(
    ("netG", "pixels", "identity", "batch", "tflop"),
    [
        ("resnet_9blocks", 256, 0.5, 1, 1.8792),
        ("resnet_9blocks", 256, 0.0, 1, 1.2871),
        ("resnet_6blocks", 128, 0.5, 2, 2 * 0.3383),
    ],
)
def test_flops_are_those_counted_by_hand(netG, pixels, identity, batch, tflop):
    model = unfilled_model(netG, pixels, lambda_identity=identity, dtype=torch.bfloat16)
    cost = step_cost(model, STEPS["fused"], [(batch, 3, pixels, pixels)] * 2, torch.bfloat16)
    # folded 7x7 convolutions compute some columns that are not used: 0.03 to 0.08 %
    assert cost.flops / 1e12 == pytest.approx(tflop, rel=1e-3)


@pytest.mark.parametrize("impl", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_tensors_live_as_the_real_ones_do(impl, dtype):
    model = small_model(dtype)
    shape = (2, 3, SIZE, SIZE)
    cost = step_cost(model, STEPS[impl], [shape, shape], dtype)
    batch = images(2, 0, 0, dtype), images(2, 0, 1, dtype), torch.arange(2)
    with _LiveTensors() as tensors:
        STEPS[impl](model, *batch)
    assert cost.live == pytest.approx(tensors.peak, rel=0.02) and cost.live > 1e6


def test_live_tensors_are_counted_once_and_until_they_die():
    x = torch.zeros(1000)
    with _LiveTensors() as tensors:
        y = x * 2
        view = y.view(10, 100)[1:]
        x.add_(1)
        assert tensors.now == 4000
        z = torch.cat([view.flatten(), x])
        assert tensors.now == 4000 + 7600
        del y, view
        assert tensors.now == 7600
        z = z + 1
    assert tensors.peak == 2 * 7600


def test_what_is_held_is_what_the_model_holds():
    model = small_model(torch.bfloat16)
    cost = step_cost(model, STEPS["fused"], [(1, 3, SIZE, SIZE)] * 2, torch.bfloat16)
    assert all(p.grad is None for w in model.weights.values() for p in w.masters)
    live = sum(p.numel() for w in model.weights.values() for p in w.masters)
    stored = sum(p.numel() for net in model.networks.values() for p in net.parameters())
    count = sum(len(w.masters) for w in model.weights.values())
    pools = 2 * (3 * 3 * SIZE * SIZE * 2 + 8)
    assert dict(cost.held) == {
        "parameters": 4 * stored,
        "copies in the compute dtype": 2 * live,
        "gradients": 4 * live,
        "Adam's moments": 8 * live + 4 * count,
        "image pools": pools,
    }
    assert cost.bytes == sum(cost.held.values()) + cost.live


def test_memory_grows_with_the_batch_and_stays_without_copies():
    model = small_model(torch.float32)
    costs = [
        step_cost(model, STEPS["fused"], [(n, 3, SIZE, SIZE)] * 2, torch.float32) for n in (1, 4)
    ]
    assert costs[0].held == costs[1].held and costs[0].held["copies in the compute dtype"] == 0
    assert costs[1].live == pytest.approx(4 * costs[0].live, rel=0.1)
    assert costs[1].flops == 4 * costs[0].flops
