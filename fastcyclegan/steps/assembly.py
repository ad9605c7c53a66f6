"""Networks and step settings as the options ask for them."""

import torch

from fastcyclegan.config import TrainConfig, block_count
from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.device import Precision
from fastcyclegan.errors import UserError
from fastcyclegan.models import Network, NLayerDiscriminator, ResnetGenerator
from fastcyclegan.models.network import init_weights
from fastcyclegan.steps.cyclegan import Settings


def make_networks(config: TrainConfig, device: torch.device) -> dict[str, Network]:
    """G_A, G_B, D_A, D_B with fresh weights, which depend on the seed alone, not on the device."""
    trunk = {"ngf": config.ngf, "n_blocks": block_count(config.netG), "padding": config.padding}
    n_layers = config.n_layers_D if config.netD == "n_layers" else 3
    networks = {
        "G_A": ResnetGenerator(config.input_nc, config.output_nc, **trunk),
        "G_B": ResnetGenerator(config.output_nc, config.input_nc, **trunk),
        "D_A": NLayerDiscriminator(config.output_nc, config.ndf, n_layers),
        "D_B": NLayerDiscriminator(config.input_nc, config.ndf, n_layers),
    }
    generator = torch.Generator().manual_seed(config.seed)
    for net in networks.values():
        init_weights(net, config.init_gain, generator)
        net.to(device)
    return networks


def make_settings(config: TrainConfig, precision: Precision) -> Settings:
    """The part of the options that a step needs."""
    names = ("lambda_A", "lambda_B", "lambda_identity", "pool_size", "lr", "beta1", "seed")
    return Settings(dtype=precision.dtype, **{name: getattr(config, name) for name in names})


def check_image_sizes(config: TrainConfig, set_A: ImageSet, set_B: ImageSet) -> None:
    """Raise UserError if an image is too small for the discriminator's layers."""
    n_layers = config.n_layers_D if config.netD == "n_layers" else 3
    smallest = NLayerDiscriminator.smallest_input(n_layers)
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
