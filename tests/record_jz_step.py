"""Record the losses of the first steps of junyanz/pytorch-CycleGAN-and-pix2pix, by its own code.

Usage: ``FASTCYCLEGAN_PEER_JZ=<checkout> python tests/record_jz_step.py [FILE]``. FILE, by default
tests/data/jz_step.json, is what ``test_jz_step.py`` compares our step with. Weights and images are
a formula, so that only the losses are stored. Both pools are filling, so they hand through.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

VARIABLE = "FASTCYCLEGAN_PEER_JZ"
DATA = Path(__file__).with_name("data") / "jz_step.json"
SIZE, N_BLOCKS, NGF, NDF = 32, 6, 4, 4
# fp32 trajectories part by rounding alone, so that only two steps of them mean something.
STEPS = {"float32": 2, "float64": 10}
# Each case differs from the defaults in its losses' weights, its GAN mode or its batch.
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "vanilla": {"gan_mode": "vanilla", "lambda_A": 9.0, "lambda_B": 11.0, "lambda_identity": 0.25},
    "no identity, batch 2": {"lambda_A": 8.0, "lambda_identity": 0.0, "batch_size": 2},
}
# What cal_gradient_penalty is asked for; its third kind, "mixed", draws from torch's generator.
PENALTIES = ("real", "fake")
DEFAULTS = {
    "gan_mode": "lsgan",
    "lambda_A": 10.0,
    "lambda_B": 10.0,
    "lambda_identity": 0.5,
    "batch_size": 1,
}


def formula_weights(name: str, net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of ``net`` drawn from N(0, 0.02^2) by (network, key) alone; biases as well."""
    return {
        key: torch.from_numpy(_random(f"{name}.{key}").randn(*value.shape) * 0.02).to(value)
        for key, value in net.state_dict().items()
    }


def formula_images(domain: str, step: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """(n, 3, SIZE, SIZE) in [-1, 1]."""
    pixels = _random(f"{domain}.{step}").uniform(-1, 1, (n, 3, SIZE, SIZE))
    return torch.from_numpy(pixels).to(dtype)


def _random(text: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(text.encode()))


def build(settings: dict[str, Any]) -> Any:
    """JZ's CycleGANModel on the CPU, fp32, with the formula's weights."""
    # Both ways of naming the device that its versions know.
    options = SimpleNamespace(
        **settings,
        gpu_ids=[],
        device=torch.device("cpu"),
        isTrain=True,
        checkpoints_dir=".",
        name="record",
        preprocess="resize_and_crop",
        direction="AtoB",
        input_nc=3,
        output_nc=3,
        ngf=NGF,
        ndf=NDF,
        netG=f"resnet_{N_BLOCKS}blocks",
        netD="basic",
        n_layers_D=3,
        norm="instance",
        no_dropout=True,
        init_type="normal",
        init_gain=0.02,
        pool_size=50,
        lr=0.0002,
        beta1=0.5,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        model = importlib.import_module("models.cycle_gan_model").CycleGANModel(options)
    for name in model.model_names:
        net = getattr(model, f"net{name}")
        net.load_state_dict(formula_weights(name, net))
    return model


def record(case: str, precision: str) -> list[dict[str, float]]:
    """The eight losses of each step of ``case``, by JZ's names."""
    settings, dtype = DEFAULTS | CASES[case], getattr(torch, precision)
    model = build(settings)
    for name in model.model_names:
        getattr(model, f"net{name}").to(dtype)
    model.criterionGAN.to(dtype)
    rows = []
    for step in range(STEPS[precision]):
        A, B = (formula_images(d, step, settings["batch_size"], dtype) for d in "AB")
        model.set_input({"A": A, "B": B, "A_paths": [], "B_paths": []})
        model.optimize_parameters()
        losses = {name: getattr(model, f"loss_{name}") for name in model.loss_names}
        rows.append({name: float(torch.as_tensor(x).detach()) for name, x in losses.items()})
    return rows


def record_penalty() -> dict[str, float]:
    """JZ's gradient penalty, which its CycleGAN never calls, at real images and at fake ones."""
    judge = build(DEFAULTS).netD_A.double()
    real, fake = (formula_images(domain, 0, 2, torch.float64) for domain in "AB")
    penalty = importlib.import_module("models.networks").cal_gradient_penalty
    return {kind: float(penalty(judge, real, fake, "cpu", kind)[0].detach()) for kind in PENALTIES}


def main(path: Path) -> None:
    """Write the losses of every case and precision to ``path``."""
    root = Path(os.environ.get(VARIABLE, ""))
    if not (root / "models/cycle_gan_model.py").is_file():
        sys.exit(f"{VARIABLE} names no checkout of pytorch-CycleGAN-and-pix2pix")
    sys.path.insert(0, str(root.resolve()))
    torch.set_num_threads(1)
    losses = {case: {p: record(case, p) for p in STEPS} for case in CASES}
    found = {
        "source": "junyanz/pytorch-CycleGAN-and-pix2pix, CycleGANModel.optimize_parameters",
        "recorded_by": "tests/record_jz_step.py",
        "torch": torch.__version__.partition("+")[0],
        "device": "cpu",
        "losses": losses,
        "penalty": record_penalty(),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
