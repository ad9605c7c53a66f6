"""Weights of the DCGAN of pytorch/examples: what networks they are of, and files for it.

It saves state dicts, as junyanz's code does: ``netG_epoch_0.pth``, ``netD_epoch_0.pth``. The keys
and shapes are ours.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.files import write_atomic
from fastcyclegan.models.dcgan import SEED_SIZE
from fastcyclegan.models.network import Network

FIRST_KEY = "main.0.weight"


def describe(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The network that a state dict of ``main.N`` keys is of: ``arch``, and nothing assumed.

    Whether the tensors fit ``arch`` is not checked.

    Raises:
        ValueError: neither a generator nor a discriminator of a DCGAN.
    """
    shapes = {
        int(key.split(".")[1]): tuple(value.shape)
        for key, value in tensors.items()
        if key.startswith("main.") and key.endswith(".weight") and value.ndim == 4
    }
    if 0 not in shapes or len(shapes) < 3:
        raise ValueError("its convolutions are not those of a DCGAN")
    first, last = shapes[0], shapes[max(shapes)]
    common = {"size": SEED_SIZE * 2 ** (len(shapes) - 1), "norm": "batch"}
    if "main.1.running_mean" in tensors:
        shape = {"nz": first[0], "ngf": last[0], "output_nc": last[1]}
        return {"class": "DCGANGenerator", **shape, **common}, {}
    return {"class": "DCGANDiscriminator", "input_nc": first[1], "ndf": first[0], **common}, {}


def write_pth(path: Path, net: Network) -> None:
    """Write the weights of ``net`` so that pytorch/examples' ``--netG`` or ``--netD`` loads them.

    Args:
        path: a ``.pth`` file, which appears whole or not at all.
        net: a DCGANGenerator or DCGANDiscriminator.

    Raises:
        OSError: it cannot be written.
    """
    state = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in net.state_dict().items()
    }
    file = io.BytesIO()
    torch.save(state, file)
    write_atomic(Path(path), file.getvalue())
