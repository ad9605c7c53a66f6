"""What a checkpoint of the default networks costs: the copy that training waits for, the writing.

    pytest bench/bench_checkpoint.py --benchmark-only

The copy is what stalls a step; the writing happens in a thread beside the steps.
"""

import pytest
import torch

from bench.ceilings import DEVICE
from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator
from fastcyclegan.runs.checkpoint import take_snapshot, write_checkpoint
from fastcyclegan.runs.folder import open_run
from fastcyclegan.steps.cyclegan import CycleGAN, Settings
from fastcyclegan.steps.state import train_state

DEVICES = sorted({"cpu", DEVICE.type})


def make_model(device: str) -> CycleGAN:
    """The paper's networks in bf16 with full pools at 256 px."""
    networks = {
        "G_A": ResnetGenerator(ngf=64, n_blocks=9),
        "G_B": ResnetGenerator(ngf=64, n_blocks=9),
        "D_A": NLayerDiscriminator(),
        "D_B": NLayerDiscriminator(),
    }
    networks = {name: net.to(device) for name, net in networks.items()}
    shape = (3, 256, 256)
    return CycleGAN(networks, Settings(dtype=torch.bfloat16), shape, shape)


def snapshot(model: CycleGAN):
    return take_snapshot(1, model.networks, train_state(model), {})


@pytest.mark.parametrize("device", DEVICES)
def bench_copy(benchmark, device):
    model = make_model(device)
    benchmark.group = "checkpoint, copy"
    kept = benchmark.pedantic(snapshot, (model,), rounds=3, warmup_rounds=1)
    tensors = [x for content, _ in kept.files.values() for x in content.values()]
    benchmark.extra_info["MiB"] = round(sum(x.nbytes for x in tensors) / 2**20)


def bench_write(benchmark, tmp_path):
    run, kept = open_run(tmp_path, "x", "digest"), snapshot(make_model("cpu"))
    benchmark.group = "checkpoint, write"
    benchmark.pedantic(write_checkpoint, (run, kept), rounds=3)
