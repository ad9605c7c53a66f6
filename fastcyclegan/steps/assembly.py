"""Networks and step settings as the options ask for them."""

from dataclasses import fields
from typing import Any

import torch

from fastcyclegan.config import TrainConfig, generator_depth
from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.device import Precision
from fastcyclegan.errors import UserError
from fastcyclegan.models import (
    JohnsonGenerator,
    Network,
    NLayerDiscriminator,
    ResnetGenerator,
    build,
)
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.steps.cyclegan import Settings
from fastcyclegan.steps.initial import load_initial


def make_networks(config: TrainConfig, device: torch.device) -> dict[str, Network]:
    """G_A, G_B, D_A, D_B with fresh weights, which depend on the seed alone, not on the device.

    With ``init_from`` the weights are those of the files in that folder. With ``impl`` reference
    they compute without kernels. Seeds torch's generators, from which dropout draws.

    Raises:
        UserError: files of ``init_from`` that do not fit the options.
    """
    networks = {name: build(arch) for name, arch in architectures(config).items()}
    generator = torch.Generator().manual_seed(config.seed)
    for net in networks.values():
        init_weights(net, config.init_gain, generator, config.init_type)
    if config.init_from:
        load_initial(config.init_from, networks)
    torch.manual_seed(config.seed)
    for net in networks.values():
        net.impl = "ref" if config.impl == "reference" else None
    return {name: net.to(device) for name, net in networks.items()}


def architectures(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """What the options make of each network, as :func:`fastcyclegan.models.build` takes it."""
    family, depth = generator_depth(config.netG)
    common = {"ngf": config.ngf, "norm": config.norm, "pixel_range": config.pixel_range}
    shape = {"dropout": config.dropout}
    if family == "johnson":
        shape = {"class": "JohnsonGenerator", "padding": config.johnson_padding}
    elif family == "unet":
        shape |= {"class": "UnetGenerator", "num_downs": depth}
    else:
        shape |= {"class": "ResnetGenerator", "n_blocks": depth, "upsample": config.upsample}
        shape |= {"padding": config.padding, "residual_relu": config.residual_relu}
    generator = shape | common
    judge: dict[str, Any] = {"ndf": config.ndf, "norm": config.norm}
    if config.netD == "pixel":
        judge["class"] = "PixelDiscriminator"
    else:
        judge |= {"class": "NLayerDiscriminator", "n_layers": layer_count(config)}
    A, B = config.input_nc, config.output_nc
    return {
        "G_A": {**generator, "input_nc": A, "output_nc": B},
        "G_B": {**generator, "input_nc": B, "output_nc": A},
        "D_A": {**judge, "input_nc": B},
        "D_B": {**judge, "input_nc": A},
    }


def layer_count(config: TrainConfig) -> int:
    """Layers of the PatchGAN; as in JZ only ``--netD n_layers`` heeds ``--n_layers_D``."""
    return config.n_layers_D if config.netD == "n_layers" else 3


def make_settings(config: TrainConfig, precision: Precision) -> Settings:
    """The part of the options that a step needs."""
    names = [field.name for field in fields(Settings) if field.name != "dtype"]
    return Settings(dtype=precision.dtype, **{name: getattr(config, name) for name in names})


def check_image_sizes(config: TrainConfig, set_A: ImageSet, set_B: ImageSet) -> None:
    """Raise UserError if an image is too small for a network, or odd for the generator."""
    _check_reflections(config, set_A, set_B)
    family, depth = generator_depth(config.netG)
    n_layers = layer_count(config)
    smallest = 1 if config.netD == "pixel" else NLayerDiscriminator.smallest_input(n_layers)
    cropped = config.preprocess.endswith("crop")
    for images in (set_A, set_B):
        side = min(int(images.height.min()), int(images.width.min()))
        side = config.crop_size if cropped else side
        if side < smallest:
            flag = f"--crop_size {side}" if cropped else f"an image side of {side} pixels"
            raise UserError(
                f"{flag} is too small for a discriminator of {n_layers} layers: it needs at least "
                f"{smallest} pixels"
            )
        odd = (images.height % 2**depth + images.width % 2**depth).nonzero()
        if family == "unet" and not cropped and len(odd):
            raise UserError(
                f"{images.names[int(odd[0])]}: {config.netG} needs sides that are multiples of "
                f"{2**depth} pixels; use a --preprocess that ends in crop"
            )


def _check_reflections(config: TrainConfig, *sets: ImageSet) -> None:
    """Raise UserError if the generator would reflect more pixels than an image or preview has."""
    family, _ = generator_depth(config.netG)
    if family == "unet":
        return
    if family == "johnson":
        smallest = JohnsonGenerator.smallest_input(config.johnson_padding)
        what = f"--netG johnson with --johnson_padding {config.johnson_padding}"
    else:
        smallest, what = ResnetGenerator.smallest, f"--netG {config.netG}"
    needs = f"{what} needs sides of at least {smallest} pixels to reflect"
    if config.crop_size < smallest:
        raise UserError(f"--crop_size {config.crop_size}: {needs}")
    for images in () if config.preprocess.endswith("crop") else sets:
        small = (torch.minimum(images.height, images.width) < smallest).nonzero()
        if len(small):
            first = int(small[0])
            size = f"{int(images.width[first])}x{int(images.height[first])}"
            raise UserError(f"{images.names[first]}: {size} pixels; {needs}")
