"""The step beside junyanz's own code: recorded losses, and live ones where there is a checkout."""

import json
import os
import subprocess
import sys

import pytest
import torch

import record_jz_step as jz
from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from fastcyclegan.steps.losses import NAMES, gradient_penalty

RECORDED = json.loads(jz.DATA.read_text(encoding="utf-8"))
# The greatest relative difference of a loss, per step. fp32: one step and its rounding, then what
# Adam makes of the rounding in gradients near its eps. fp64: ten steps of the same.
TOLERANCES = {"float32": [1e-5, 1e-4], "float64": [1e-9] * 10}


def make_model(case: str, dtype: torch.dtype) -> CycleGAN:
    settings = jz.DEFAULTS | jz.CASES[case]
    networks = {
        "G_A": ResnetGenerator(ngf=jz.NGF, n_blocks=jz.N_BLOCKS),
        "G_B": ResnetGenerator(ngf=jz.NGF, n_blocks=jz.N_BLOCKS),
        "D_A": NLayerDiscriminator(ndf=jz.NDF),
        "D_B": NLayerDiscriminator(ndf=jz.NDF),
    }
    for name, net in networks.items():
        net.load_state_dict(jz.formula_weights(name, net))
        net.to(dtype)
    del settings["batch_size"]
    shape = (3, jz.SIZE, jz.SIZE)
    return CycleGAN(networks, Settings(dtype=dtype, **settings), shape, shape)


def our_losses(case: str, precision: str, impl: str) -> list[dict[str, float]]:
    dtype, n = getattr(torch, precision), (jz.DEFAULTS | jz.CASES[case])["batch_size"]
    model, rows = make_model(case, dtype), []
    for step in range(jz.STEPS[precision]):
        A, B = (
            jz.formula_images(domain, step, n, dtype).contiguous(memory_format=torch.channels_last)
            for domain in "AB"
        )
        losses = STEPS[impl](model, A, B, torch.arange(n) + step * n)
        rows.append(dict(zip(NAMES, losses.tolist(), strict=True)))
    return rows


def differences(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[float]:
    """The greatest relative difference of each step; both may be 0."""
    assert len(ours) == len(theirs)
    assert all(list(row) == list(truth) for row, truth in zip(ours, theirs, strict=True))
    return [
        max(abs(row[name] - x) / (abs(x) or 1.0) for name, x in truth.items())
        for row, truth in zip(ours, theirs, strict=True)
    ]


def check(case: str, precision: str, impl: str, theirs: list[dict[str, float]]) -> None:
    found = differences(our_losses(case, precision, impl), theirs)
    for step, (difference, most) in enumerate(zip(found, TOLERANCES[precision], strict=True), 1):
        assert difference <= most, (case, precision, impl, step)


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", jz.CASES)
def test_step_equals_the_recorded_one(case, precision, impl):
    """Same weights and images, pool filling: all eight losses agree at every step."""
    check(case, precision, impl, RECORDED["losses"][case][precision])


@pytest.mark.parametrize(("kind", "share"), [("real", 1.0), ("fake", 0.0)])
def test_penalty_equals_the_recorded_one(kind, share):
    """At both ends of the mixture; JZ adds 1e-16 to each slope, which is below this rounding."""
    judge = make_model("defaults", torch.float64).networks["D_A"]
    real, fake = (jz.formula_images(domain, 0, 2, torch.float64) for domain in "AB")
    found = gradient_penalty(judge, real, fake, torch.full((2,), share))
    assert found.item() == pytest.approx(RECORDED["penalty"][kind], rel=1e-9)


def test_step_equals_jz_code_run_now(tmp_path):
    """As recorded, but by the checkout itself on this machine."""
    if not os.environ.get(jz.VARIABLE):
        pytest.skip(f"{jz.VARIABLE} names no checkout of pytorch-CycleGAN-and-pix2pix")
    path = tmp_path / "live.json"
    subprocess.run([sys.executable, jz.__file__, str(path)], check=True, timeout=300)
    live = json.loads(path.read_text(encoding="utf-8"))
    for case in jz.CASES:
        for precision in jz.STEPS:
            for impl in STEPS:
                check(case, precision, impl, live["losses"][case][precision])
    assert live["penalty"] == pytest.approx(RECORDED["penalty"], rel=1e-9)
