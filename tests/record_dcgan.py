"""Record what pytorch/examples' own DCGAN computes: forward passes and steps.

Run by hand, not by pytest. FASTCYCLEGAN_PEER_EXAMPLES names a checkout of pytorch/examples, whose
networks and loop body are driven as they are::

    FASTCYCLEGAN_PEER_EXAMPLES=<checkout> python tests/record_dcgan.py [tests/data/dcgan.json]

Weights, images and noise follow from a formula here, so that only numbers are kept.
"""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.examples import VARIABLE, ExamplesDCGAN, checkout

DATA = Path(__file__).with_name("data") / "dcgan.json"
SIZE, NZ, NGF, NDF, BATCH = 64, 12, 8, 6, 4
# fp32 trajectories part by rounding alone, so that only two steps of them mean something.
STEPS = {"float32": 2, "float64": 8}


def formula_weights(name: str, net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of ``net`` by (network, key) alone: N(0, 0.1^2), scales of norms about 1."""
    state = {}
    for key, value in net.state_dict().items():
        if key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked"):
            state[key] = value
            continue
        drawn = _random(f"{name}.{key}").randn(*value.shape) * 0.1
        drawn += float(key.endswith("weight") and value.ndim == 1)
        state[key] = torch.from_numpy(drawn).to(value)
    return state


def formula_batch(step: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (BATCH, 3, SIZE, SIZE) in [-1, 1] and noise (BATCH, NZ, 1, 1) of ``step``."""
    real = _random(f"real.{step}").uniform(-1, 1, (BATCH, 3, SIZE, SIZE))
    noise = _random(f"noise.{step}").randn(BATCH, NZ, 1, 1)
    return torch.from_numpy(real).to(dtype), torch.from_numpy(noise).to(dtype)


def _random(text: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(text.encode()))


def build(dtype: torch.dtype) -> ExamplesDCGAN:
    """Theirs, on the CPU, with the formula's weights."""
    peer = ExamplesDCGAN(torch.device("cpu"), nz=NZ, ngf=NGF, ndf=NDF)
    for name, net in (("G", peer.netG), ("D", peer.netD)):
        net.load_state_dict(formula_weights(name, net))
        net.to(dtype)
    return peer


def record_forward() -> dict[str, Any]:
    """Probabilities of real images, and some pixels of images made of noise; fp64, in training."""
    peer = build(torch.float64)
    real, noise = formula_batch(0, torch.float64)
    fake = peer.netG(noise).detach()
    return {
        "D": peer.netD(real).tolist(),
        "G_mean_size": float(fake.abs().mean()),
        "G_pixels": fake[:, :, 10, 20].flatten().tolist(),
    }


def record_steps(precision: str) -> list[dict[str, float]]:
    """What the loop prints of each step."""
    dtype = getattr(torch, precision)
    peer = build(dtype)
    return [peer.step(*formula_batch(step, dtype)) for step in range(STEPS[precision])]


def main(path: Path) -> None:
    """Write the forward passes and the steps in each precision to ``path``."""
    if checkout() is None:
        sys.exit(f"{VARIABLE} names no checkout of pytorch/examples")
    torch.set_num_threads(1)
    found = {
        "source": "pytorch/examples, dcgan/main.py",
        "recorded_by": "tests/record_dcgan.py",
        "torch": torch.__version__.partition("+")[0],
        "device": "cpu",
        "forward": record_forward(),
        "steps": {precision: record_steps(precision) for precision in STEPS},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
