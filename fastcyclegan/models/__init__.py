"""Generators and discriminators, built from a description that fits in a JSON header."""

from typing import Any

from fastcyclegan.errors import UserError
from fastcyclegan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from fastcyclegan.models.johnson import JohnsonGenerator
from fastcyclegan.models.network import Network
from fastcyclegan.models.patchgan import NLayerDiscriminator, PixelDiscriminator
from fastcyclegan.models.resnet import ResnetGenerator
from fastcyclegan.models.unet import UnetGenerator

_NETWORKS = (
    ResnetGenerator,
    UnetGenerator,
    DCGANGenerator,
    JohnsonGenerator,
    NLayerDiscriminator,
    PixelDiscriminator,
    DCGANDiscriminator,
)

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "JohnsonGenerator",
    "NLayerDiscriminator",
    "Network",
    "PixelDiscriminator",
    "ResnetGenerator",
    "UnetGenerator",
    "build",
]

_CLASSES = {cls.__name__: cls for cls in _NETWORKS}
# far above any network in use; a damaged or hostile file must not build for hours
_LARGEST = 4096


def build(arch: dict[str, Any]) -> Network:
    """The network that ``arch`` describes, with fresh weights.

    Args:
        arch: ``class`` and the arguments of that class, as in ``Network.arch``.

    Raises:
        UserError: an unknown class, or arguments that it does not take.
    """
    arguments = dict(arch)
    name = arguments.pop("class", None)
    if not isinstance(name, str) or name not in _CLASSES:
        raise UserError(f"unknown network {name!r}: known are {', '.join(sorted(_CLASSES))}")
    if any(isinstance(x, int) and x > _LARGEST for x in arguments.values()):
        raise UserError(f"{name} of {arguments} is larger than {_LARGEST} in something")
    try:
        return _CLASSES[name](**arguments)
    except (TypeError, ValueError) as problem:
        raise UserError(f"{name} cannot be built from {arguments}: {problem}") from None
