"""Networks and step settings of a DCGAN as the options ask for them."""

from dataclasses import fields
from typing import Any

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.device import Precision
from fastcyclegan.models import Network, build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.steps.dcgan import Settings
from fastcyclegan.steps.initial import load_initial


def make_networks(config: TrainConfig, device: torch.device) -> dict[str, Network]:
    """G and D with fresh weights, which depend on the seed alone; with ``ema`` G_ema, a copy of G.

    With ``init_from`` the weights are those of the files in that folder.

    Raises:
        UserError: files of ``init_from`` that do not fit the options.
    """
    networks = {name: build(arch) for name, arch in architectures(config).items()}
    generator = torch.Generator().manual_seed(config.seed)
    for net in networks.values():
        init_weights(net, config.init_gain, generator, config.init_type)
    if config.init_from:
        load_initial(config.init_from, networks)
    if config.ema:
        networks["G_ema"] = build(networks["G"].arch).requires_grad_(False)
        networks["G_ema"].load_state_dict(networks["G"].state_dict())
    return {name: net.to(device) for name, net in networks.items()}


def architectures(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """What the options make of G and D, as :func:`fastcyclegan.models.build` takes it."""
    channels, size = config.output_nc, config.crop_size
    shape_G = {"nz": config.nz, "ngf": config.ngf, "output_nc": channels, "size": size}
    shape_D = {"input_nc": channels, "ndf": config.ndf, "size": size}
    return {
        "G": {
            "class": "DCGANGenerator",
            **shape_G,
            "norm": "batch",
            "pixel_range": config.pixel_range,
        },
        "D": {"class": "DCGANDiscriminator", **shape_D, "norm": "batch"},
    }


def make_settings(config: TrainConfig, precision: Precision) -> Settings:
    """The part of the options that a step needs."""
    names = [field.name for field in fields(Settings) if field.name != "dtype"]
    return Settings(dtype=precision.dtype, **{name: getattr(config, name) for name in names})
