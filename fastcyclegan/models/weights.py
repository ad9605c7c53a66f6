"""Networks in files: safetensors with everything needed to rebuild, and JZ's ``.pth``.

Ours hold fp32 tensors, and the network's description in the header. What a ``.pth`` holds is found
from its keys and shapes.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastcyclegan import models
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable, write_atomic
from fastcyclegan.models import examples, jz
from fastcyclegan.pixel_range import PIXEL_RANGES

FORMAT = "fastcyclegan/1"
GENERATOR_OF = {"AtoB": "G_A", "BtoA": "G_B"}


def save_network(path: Path, net: nn.Module, *, step: int, pixel_range: str = "tanh") -> None:
    """Write ``net`` to ``path`` (.safetensors), atomically. Raises OSError; the old file stays."""
    write_atomic(Path(path), network_bytes(net, step=step, pixel_range=pixel_range))


def network_bytes(net: nn.Module, *, step: int, pixel_range: str = "tanh") -> bytes:
    """The content of the weights file of ``net`` (which has ``arch``) after ``step`` steps.

    A generator knows its pixel range itself; of a discriminator it is the one that it judged.
    """
    return tensors_to_bytes(*network_tensors(net, step=step, pixel_range=pixel_range))


def network_tensors(
    net: nn.Module, *, step: int, pixel_range: str = "tanh"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of :func:`network_bytes`, which may be those of ``net``, and the metadata."""
    metadata = {
        "format": FORMAT,
        "arch": json.dumps(net.arch),
        "pixel_range": net.arch.get("pixel_range", pixel_range),
        "step": str(int(step)),
    }
    tensors = {
        key: value.float() if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }
    return tensors, metadata


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file of ``tensors`` (any device, dtype, layout; views of one another too)."""
    # A copy for each: safetensors refuses tensors that share memory.
    return copies_to_bytes(copies(tensors), metadata)


def copies_to_bytes(own: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """As :func:`tensors_to_bytes`, of what :func:`copies` made."""
    return safetensors.torch.save({k: x.contiguous() for k, x in own.items()}, metadata)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` on the CPU, each in memory of its own, in the layout that it has."""
    return {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}


def tensors_from_bytes(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header metadata of a safetensors file. Raises ValueError for anything else."""
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise ValueError(str(error)) from None
    (length,) = struct.unpack("<Q", data[:8])
    return tensors, json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def load_network(path: Path, pixel_range: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network of a weights file: (network in fp32 on the CPU, metadata).

    A ``.pth`` does not tell its pixel range: it is ``pixel_range``, or tanh; of linear255 its last
    convolution is taken for the output itself. One of ours does, and must agree with
    ``pixel_range`` if that is given.

    ``metadata`` has ``format``, ``arch`` (a dict), ``pixel_range`` and ``step`` (an int). For a
    ``.pth`` it has no step, and ``assumed`` names the entries of ``arch`` that the file does not
    tell. Raises UserError when the file is missing, damaged, of another program, or does not fit
    its ``arch``.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() == ".pth":
        return _load_pth(path, pixel_range or "tanh")
    tensors, header = _read(path)
    if not header.get("format", "").startswith("fastcyclegan/"):
        raise UserError(f"{path} was not written by fastcyclegan (no metadata): give another file")
    if header["format"] != FORMAT:
        raise UserError(f"{path} has format {header['format']}, this version reads {FORMAT}")
    try:
        metadata = dict(header, arch=json.loads(header["arch"]), step=int(header["step"]))
        own = header["pixel_range"]
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path} has damaged metadata ({error}): save it again") from None
    _check_range(path, metadata["arch"], own, pixel_range)
    net = _build(path, metadata["arch"], tensors)
    net.load_state_dict(tensors)
    return net, metadata


def _check_range(path: Path, arch: Any, own: str, wanted: str | None) -> None:
    if own not in PIXEL_RANGES:
        known = ", ".join(PIXEL_RANGES)
        raise UserError(f"{path} has pixel range {own!r}, this version knows {known}")
    if isinstance(arch, dict) and arch.get("pixel_range", own) != own:
        raise UserError(f"{path} has damaged metadata (two pixel ranges): save it again")
    if wanted not in (None, own):
        raise UserError(f"--pixel_range {wanted}: {path} has {own}; leave it out")


def _load_pth(path: Path, pixel_range: str) -> tuple[nn.Module, dict[str, Any]]:
    tensors = jz.read_pth(path)
    try:
        known = examples if examples.FIRST_KEY in tensors else jz
        arch, assumed = known.describe(tensors)
    except ValueError as error:
        raise UserError(
            f"{path} is none of the networks of pytorch-CycleGAN-and-pix2pix, nor a DCGAN of "
            f"pytorch/examples: {error}"
        ) from None
    if arch["class"].endswith("Generator"):
        arch["pixel_range"] = pixel_range
    outline = _outline(path, arch)
    tensors = jz.current(tensors, arch["norm"], outline.norm_keys)
    net = _build(path, arch, tensors)
    net.load_state_dict(tensors)
    if arch.get("pixel_range") == "linear255":
        _take_out_scale(path, net)
    metadata = {"format": "pth", "arch": net.arch, "pixel_range": pixel_range}
    return net, metadata | {"assumed": assumed}


@torch.no_grad()
def _take_out_scale(path: Path, net: models.Network) -> None:
    """Change the last convolution so that ``to_pixels`` makes of it what it was in the file.

    Elsewhere the output in linear255 is that of the convolution, with nothing behind it.
    """
    if net.last.bias is None:
        raise UserError(
            f"--pixel_range linear255: {path} is a DCGAN, whose last convolution has no bias for "
            "the middle of the range; only tanh and tanh255 can be read from such a file"
        )
    *_, centre, half = PIXEL_RANGES["linear255"]
    net.last.weight.div_(half)
    net.last.bias.sub_(centre).div_(half)


def assumptions(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`load_network`'s file does not tell, as it was taken; nothing for our own."""
    if metadata["format"] != "pth":
        return {}
    return {"pixel_range": metadata["pixel_range"], **metadata["assumed"]}


def told_assumptions(path: Path, net: nn.Module, metadata: Mapping[str, Any]) -> str:
    """A line on the network of ``path`` and what was assumed of it; empty for our own files."""
    guesses = ", ".join(f"{name} {value}" for name, value in assumptions(metadata).items())
    if not guesses:
        return ""
    return f"{printable(path)}: {net.title}; it does not tell, and assumed is {guesses}"


def load_generator(
    path: Path | str,
    direction: str = "AtoB",
    device: torch.device | str = "cpu",
    pixel_range: str | None = None,
) -> nn.Module:
    """A trained generator, in eval mode and channels_last on ``device``.

    ``path`` is a weights file (.safetensors of ours, .pth of JZ's), or a folder that holds G_A and
    G_B.safetensors: a run, its weights/ or a checkpoint; ``direction`` "AtoB" or "BtoA" chooses
    between those two and means nothing for a file. The network maps (N, input_nc, H, W) to
    (N, output_nc, H, W), both in ``net.pixel_range`` ([-1, 1] for tanh; ``pixel_range`` says it
    where a .pth is of another), H and W multiples of ``net.multiple``: 4 for a ResNet.
    Of a DCGAN's folder it is G_ema, or G where there is none, and maps noise (N, nz, 1, 1).
    Raises UserError as ``load_network``, and for what is not a generator.
    """
    return open_generator(path, direction, device, pixel_range)[0]


def open_generator(
    path: Path | str,
    direction: str = "AtoB",
    device: torch.device | str = "cpu",
    pixel_range: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """As :func:`load_generator`, and the metadata that :func:`load_network` returns."""
    if direction not in GENERATOR_OF:
        raise UserError(f"direction {direction!r} is not known: use AtoB or BtoA")
    path = Path(path)
    if path.is_dir():
        return _generator_of_folder(path, direction, device, pixel_range)
    net, metadata = load_network(path, pixel_range)
    name = metadata["arch"]["class"]
    if not name.endswith("Generator"):
        raise UserError(f"{path} holds a {name}, not a generator: give the file of G_A, G_B or G")
    return net.eval().to(device=device, memory_format=torch.channels_last), metadata


def _generator_of_folder(
    folder: Path, direction: str, device: torch.device | str, pixel_range: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """That of a DCGAN if the folder is of one, else the one of ``direction``."""
    for path in (_in_folder(folder, name) for name in ("G_ema", "G")):
        if path:
            net, metadata = open_generator(path, direction, device, pixel_range)
            if "nz" in net.arch:
                return net, metadata
    path = find_in_folder(folder, GENERATOR_OF[direction])
    return open_generator(path, direction, device, pixel_range)


def find_in_folder(folder: Path, name: str) -> Path:
    """The file of the network ``name`` in a run, or in a folder of another program.

    Raises:
        UserError: there is none.
    """
    path = _in_folder(folder, name)
    if path:
        return path
    raise UserError(
        f"{folder} has no {' or '.join(_names(name))}: give a run folder that has saved once, a "
        "folder of pytorch-CycleGAN-and-pix2pix, or a .safetensors or .pth file"
    )


def network_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files of those of the networks ``names`` that are in a folder.

    Raises:
        UserError: there is none.
    """
    found = {name: path for name in names if (path := _in_folder(folder, name))}
    return found or {names[0]: find_in_folder(folder, names[0])}


def _names(name: str) -> tuple[str, ...]:
    theirs = f"net{name}.pth" if len(name) == 1 else f"latest_net_{name}.pth"
    return f"weights/{name}.safetensors", f"{name}.safetensors", theirs


def _in_folder(folder: Path, name: str) -> Path | None:
    """The first of ``_names`` that is there, else the last epoch that pytorch/examples saved."""
    paths = [path for path in (folder / inside for inside in _names(name)) if path.is_file()]
    numbered = re.compile(rf"net{name}_epoch_([0-9]+)\.pth")
    matches = [(numbered.fullmatch(path.name), path) for path in folder.glob("net*.pth")]
    epochs = sorted((int(match[1]), path) for match, path in matches if match)
    return (paths or [path for _, path in epochs[-1:]] or [None])[0]


def _check_file(path: Path) -> None:
    if path.suffix.lower() in (".pt", ".pt2", ".ckpt", ".pkl"):
        raise UserError(f"{path}: {path.suffix} files are not read, only .safetensors and .pth")
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run folder, or a .safetensors or .pth file")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .safetensors or .pth file")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return tensors_from_bytes(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is truncated or no safetensors file ({reason})") from None


def _outline(path: Path, arch: Any) -> models.Network:
    """The network of ``arch`` without memory, however large it claims to be."""
    if not isinstance(arch, dict):
        raise UserError(f"{path} has damaged metadata (arch is {arch!r}): save it again")
    try:
        with torch.device("meta"):
            return models.build(arch)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except RuntimeError as error:  # torch's own refusal of a size
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: {arch} cannot be built: {reason}") from None


def _build(path: Path, arch: Any, tensors: dict[str, Tensor]) -> nn.Module:
    outline = _outline(path, arch)
    problem = _mismatch(outline.state_dict(), tensors)
    if problem:
        raise UserError(f"{path} does not fit {outline.title}: {problem}")
    return models.build(arch)


def _mismatch(expected: dict[str, Tensor], tensors: dict[str, Tensor]) -> str | None:
    for key, value in expected.items():
        if key not in tensors:
            return f"{key} is missing"
        if tensors[key].shape != value.shape:
            return f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(value.shape)}"
    extra = [key for key in tensors if key not in expected]
    return f"{printable(extra[0])[:80]} is not part of the network" if extra else None
