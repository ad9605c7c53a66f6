"""Record what the networks of junyanz/pytorch-CycleGAN-and-pix2pix put out, by its own code.

Usage: ``FASTCYCLEGAN_PEER_JZ=<checkout> python tests/record_jz.py [FILE]``. FILE, by default
tests/data/jz_networks.json, is what ``test_jz_agreement.py`` compares our networks with. Weights
and images are a formula of their names, so that only keys, counts and some outputs are stored.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import sys
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

VARIABLE = "FASTCYCLEGAN_PEER_JZ"
DATA = Path(__file__).with_name("data") / "jz_networks.json"
NORMS = ("instance", "batch", "none")
WIDTH, BATCH, VALUES = 4, 2, 16

# name of a case: (family, what fixes its depth, norm, dropout, sides of its images)
CASES: dict[str, tuple[str, int, str, bool, tuple[int, int]]] = {}
for _norm, _dropout in product(NORMS, (False, True)):
    _more = " dropout" * _dropout
    CASES |= {
        f"resnet_{n}blocks {_norm}{_more}": ("resnet", n, _norm, _dropout, (20, 32)) for n in (6, 9)
    }
    CASES |= {
        f"unet_{2**n} {_norm}{_more}": ("unet", n, _norm, _dropout, (2**n, 2**n)) for n in (7, 8)
    }
for _norm in NORMS:
    CASES |= {
        f"n_layers {n} {_norm}": ("patchgan", n, _norm, False, (128, 96)) for n in (1, 2, 3, 4, 5)
    }
    CASES[f"pixel {_norm}"] = ("pixel", 0, _norm, False, (20, 32))


def theirs(networks: Any, case: str, width: int = WIDTH) -> nn.Module:
    """JZ's network of ``case``; ``networks`` is its module ``models.networks``."""
    family, depth, norm, dropout, _ = CASES[case]
    layer = networks.get_norm_layer(norm)
    if family == "resnet":
        return networks.ResnetGenerator(3, 3, width, layer, dropout, depth)
    if family == "unet":
        return networks.UnetGenerator(3, 3, depth, width, layer, dropout)
    if family == "patchgan":
        return networks.NLayerDiscriminator(3, width, depth, layer)
    return networks.PixelDiscriminator(3, width, layer)


def formula_weights(net: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of ``net`` in which every number follows from its key, and none is dead."""
    return {key: _formula(key, value) for key, value in net.state_dict().items()}


def _formula(key: str, like: torch.Tensor) -> torch.Tensor:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if key.endswith("running_var"):
        values = random.uniform(0.5, 2.0, like.shape)
    elif like.ndim == 4:
        # keeps the size of activations through any number of layers
        values = random.randn(*like.shape) / np.sqrt(like[0].numel())
    else:
        values = random.randn(*like.shape) * 0.2 + key.endswith("weight")
    return torch.from_numpy(values).to(like)


def formula_images(case: str) -> torch.Tensor:
    """(BATCH, 3, H, W) in [-1, 1]."""
    random = np.random.RandomState(zlib.crc32(case.encode()))
    return torch.from_numpy(random.uniform(-1, 1, (BATCH, 3, *CASES[case][-1]))).float()


def sample(x: torch.Tensor) -> list[float]:
    """VALUES elements of ``x`` at equal distances, in NCHW order."""
    at = torch.linspace(0, x.numel() - 1, VALUES).long()
    return x.detach().double().contiguous().flatten()[at].tolist()


def outputs(net: nn.Module, case: str) -> dict[str, Any]:
    """What is compared: shape and values in eval mode; in training mode too, where it differs.

    Dropout is left out of training mode: its draws are no formula.
    """
    _, _, norm, dropout, _ = CASES[case]
    x = formula_images(case)
    with torch.no_grad():
        y = net.eval()(x)
        found = {"shape": list(y.shape), "eval": sample(y)}
        if norm == "batch" and not dropout:
            found["train"] = sample(net.train()(x))
            running = [v.flatten() for k, v in net.state_dict().items() if "running" in k]
            found["running"] = sample(torch.cat(running))
    return found


def keys_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of all keys and shapes, in order."""
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256(text.encode()).hexdigest()


def record(networks: Any, case: str) -> dict[str, Any]:
    """Outputs of the small network, and the counts of the one of real width."""
    net = theirs(networks, case)
    net.load_state_dict(formula_weights(net))
    large = theirs(networks, case, width=64)
    return {
        "parameters": sum(p.numel() for p in large.parameters()),
        "tensors": len(large.state_dict()),
        "keys": keys_digest(large.state_dict()),
        **outputs(net, case),
    }


def record_init(networks: Any) -> dict[str, list[float]]:
    """Standard deviation of each weight of one network, per way of initialisation."""
    found = {}
    for kind in ("normal", "xavier", "kaiming", "orthogonal"):
        torch.manual_seed(0)
        net = theirs(networks, "resnet_6blocks batch", width=32)
        with contextlib.redirect_stdout(io.StringIO()):
            networks.init_weights(net, kind, 0.05)
        weights = [p for p in net.parameters() if p.ndim == 4]
        found[kind] = [round(p.std().item(), 6) for p in weights]
    return found


def main(path: Path) -> None:
    """Write the outputs of every case to ``path``."""
    root = Path(os.environ.get(VARIABLE, ""))
    if not (root / "models/networks.py").is_file():
        sys.exit(f"{VARIABLE} names no checkout of pytorch-CycleGAN-and-pix2pix")
    sys.path.insert(0, str(root.resolve()))
    torch.set_num_threads(1)
    networks = importlib.import_module("models.networks")
    found = {
        "source": "junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py",
        "recorded_by": "tests/record_jz.py",
        "torch": torch.__version__.partition("+")[0],
        "device": "cpu, fp32",
        "init_std": record_init(networks),
        "cases": {case: record(networks, case) for case in CASES},
    }
    # floats to nine digits are exact in fp32
    text = json.dumps(json.loads(json.dumps(found), parse_float=lambda x: float(f"{float(x):.9g}")))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.replace(', "', ',\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
