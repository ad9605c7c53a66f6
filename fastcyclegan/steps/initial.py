"""Training that starts from weights in files: ``--init_from``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.models import Network
from fastcyclegan.models.weights import find_in_folder, load_network
from fastcyclegan.presets import set_by_preset

OptionsOf = Callable[[Mapping[str, Any], TrainConfig], dict[str, Any]]


def adopt(
    config: TrainConfig, explicit: frozenset[str], parts: Mapping[str, OptionsOf]
) -> tuple[TrainConfig, str]:
    """``config`` with the networks of the files in ``init_from``, and a line that tells them.

    What a ``.pth`` does not tell (reflect or replicate padding, dropout of a U-Net, the pixel
    range) stays as the options, or the preset, have it.

    Args:
        config: the options.
        explicit: the names of those that the user gave.
        parts: the networks to look at, and what options each one's ``arch`` makes of ``config``.

    Raises:
        UserError: a file is missing, unusable or of the wrong kind of network, or an explicit
            option, or a value of an explicit preset, contradicts it.
    """
    folder = Path(config.init_from or "")
    found: dict[str, Any] = {}
    assumed: dict[str, Any] = {}
    preset = dict.fromkeys(set_by_preset(config, explicit), f" (of --preset {config.preset})")
    for name, options_of in parts.items():
        path = find_in_folder(folder, name)
        foreign = path.suffix.lower() == ".pth"
        net, metadata = load_network(path, config.pixel_range if foreign else None)
        _check_kind(path, name, net)
        untold = {"pixel_range", *metadata["assumed"]} if foreign else set()
        stated = {"pixel_range": metadata["pixel_range"]} | options_of(net.arch, config)
        for option, value in stated.items():
            given = getattr(config, option)
            if option in untold:
                assumed[option] = f"{given}{preset.get(option, '')}"
            elif given != value and option in explicit:
                raise UserError(f"--{option} {given}: {path} has {value}; leave it out")
            elif given != value and option in preset:
                named = f"--preset {config.preset} sets {option} {given}: {path} has {value}"
                raise UserError(f"{named}; give --{option} {value}, or leave the preset out")
            else:
                found[option] = value
    return replace(config, **found), _told(folder, found, assumed)


def load_initial(folder: str, networks: Mapping[str, Network]) -> None:
    """Put the weights of the files in ``folder`` into ``networks``, by their names.

    Raises:
        UserError: a file is missing or unusable, or is of another network.
    """
    pixel_range = next(iter(networks.values())).pixel_range
    for name in networks:
        path = find_in_folder(Path(folder), name)
        foreign = path.suffix.lower() == ".pth"
        net, metadata = load_network(path, pixel_range if foreign else None)
        wanted = networks[name].arch | {"pixel_range": pixel_range}
        has = net.arch | {"pixel_range": metadata["pixel_range"]}
        _check_kind(path, name, net)
        for key, value in wanted.items():
            if has.get(key) != value and key not in metadata.get("assumed", {}):
                raise UserError(
                    f"--init_from: {path} has {key} {has.get(key)}, {name} needs {value}"
                )
        if networks[name].state_dict().keys() != net.state_dict().keys():
            raise UserError(f"--padding {wanted['padding']}: {path} has other keys; leave it out")
        networks[name].load_state_dict(net.state_dict())


def _check_kind(path: Path, name: str, net: Network) -> None:
    kind, found = "Generator" if name.startswith("G") else "Discriminator", type(net).__name__
    of_dcgan = len(name) == 1
    if not found.endswith(kind) or found.startswith("DCGAN") != of_dcgan:
        wanted = f"DCGAN{kind}" if of_dcgan else kind.lower()
        raise UserError(f"--init_from: {path} holds a {found}, not a {wanted}")


def _generator_options(arch: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    names = ("input_nc", "output_nc", "ngf", "norm", "dropout", "padding", "upsample")
    options = {name: arch[name] for name in (*names, "residual_relu") if name in arch}
    if arch["class"] == "JohnsonGenerator":
        padding = options.pop("padding")
        return {"netG": "johnson"} | options | {"johnson_padding": padding}
    if arch["class"] == "ResnetGenerator":
        return {"netG": f"resnet_{arch['n_blocks']}blocks"} | options
    return {"netG": f"unet_{2 ** arch['num_downs']}"} | options


def _discriminator_options(arch: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    options = {"ndf": arch["ndf"], "norm": arch["norm"]}
    if arch["class"] == "PixelDiscriminator":
        return options | {"netD": "pixel"}
    if arch["n_layers"] == 3 and config.netD == "basic":
        return options | {"netD": "basic"}
    return options | {"netD": "n_layers", "n_layers_D": arch["n_layers"]}


def _dcgan_generator_options(arch: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    shape = {name: arch[name] for name in ("nz", "ngf", "output_nc")}
    return shape | {"crop_size": arch["size"]}


def _dcgan_discriminator_options(arch: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    return {"ndf": arch["ndf"], "output_nc": arch["input_nc"], "crop_size": arch["size"]}


CYCLEGAN = {"G_A": _generator_options, "D_A": _discriminator_options}
DCGAN = {"G": _dcgan_generator_options, "D": _dcgan_discriminator_options}


def _told(folder: Path, found: Mapping[str, Any], assumed: Mapping[str, Any]) -> str:
    line = f"starting from {printable(folder)}: " + ", ".join(f"{k} {v}" for k, v in found.items())
    if not assumed:
        return line
    guesses = ", ".join(f"{name} {value}" for name, value in assumed.items())
    return f"{line}; the files do not tell, and assumed is {guesses}"
