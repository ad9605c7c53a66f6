"""Weights of junyanz/pytorch-CycleGAN-and-pix2pix: ``.pth`` files, and the networks they are of.

Such a file is a pickle. It is read by :func:`read_pth` alone, which lets torch build tensors and
nothing else (``weights_only=True``), without a fallback, and refuses everything but a dict of
tensors that are no larger than the file.

What network a file is of follows from its keys and shapes, see :func:`describe`. aitorzip's
PyTorch-CycleGAN writes the same keys.
"""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.errors import UserError

LARGEST_FILE = 4 * 2**30
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file, by key, on the CPU; nothing in the file is executed.

    Raises:
        UserError: no such file; not written by ``torch.save``; damaged; something in it that is
            not a plain tensor; compressed, or with tensors larger than the file.
    """
    data = _bytes(path)
    if data[:4] == _ZIP:
        _check_zip(path, data)
    elif data[:2] != _PICKLE:
        raise UserError(f"{path} was not written by torch.save: give another file")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can raise anything; all of it is a refusal
        raise UserError(f"{path} is {_refusal(error)}") from None
    _check_tensors(path, content, len(data))
    return dict(content)


def _refusal(error: Exception) -> str:
    """What torch found, without its advice to execute what is in the file."""
    found = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
    if found:
        return f"no plain weights file: it holds {found[1]}; save the state_dict() alone"
    said = str(error).rpartition("WeightsUnpickler error: ")[2]
    reason = (said.strip().splitlines() or [""])[0]
    if not reason or "weights only" in reason.lower():
        reason = type(error).__name__
    return f"damaged or no plain weights file ({reason[:160]})"


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is larger than {LARGEST_FILE // 2**30} GiB: not a generator")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another file") from None


def _check_zip(path: Path, data: bytes) -> None:
    """torch.save stores every record once and as it is; what differs could unpack to anything."""
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is truncated or damaged ({error})") from None
    if any(e.filename.endswith("constants.pkl") for e in entries):
        raise UserError(f"{path} is a program (TorchScript), not a file of weights")
    plain = all(e.compress_type == zipfile.ZIP_STORED and not e.flag_bits & 1 for e in entries)
    once = len({e.filename for e in entries}) == len(entries)
    if not (plain and once and sum(e.file_size for e in entries) <= len(data)):
        raise UserError(f"{path} holds compressed or repeated records, which torch.save never does")


def _check_tensors(path: Path, content: Any, file_size: int) -> None:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds {_kind(content)}, not a dict of weights")
    total = 0
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            shown = repr(key)[:80]
            raise UserError(f"{path} holds {_kind(value)} under {shown}, not a plain tensor")
        total += max(value.untyped_storage().nbytes(), value.numel() * value.element_size())
        if total > file_size:
            raise UserError(f"{path} describes tensors that are larger than the file")


def _is_plain(value: Any) -> bool:
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and not value.is_quantized


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor on {value.device}"
    return f"a {type(value).__name__}"


def describe(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The network that a state dict of JZ's is of, from its keys and shapes.

    Returns:
        (``arch`` as :func:`fastcyclegan.models.build` takes it, and those of its entries that the
        keys do not tell and that are assumed). Whether the tensors fit ``arch`` is not checked.

    Raises:
        ValueError: not one of JZ's networks.
    """
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    for first, form in (
        ("model.model.0.weight", _unet),
        ("net.0.weight", _pixel),
        ("model.1.weight", _resnet),
        ("model.0.weight", _patchgan),
    ):
        if len(shapes.get(first, ())) == 4:
            try:
                return form(shapes)
            except (KeyError, IndexError) as error:
                raise ValueError(f"{error.args[0]} is missing") from None
    raise ValueError(f"its first key is {next(iter(shapes))!r}")


def _norm(shapes: Mapping[str, tuple], *inner: str) -> str:
    """JZ's rule: convolutions in front of a norm have a bias with instance norm alone."""
    affine = {key.removesuffix(".running_mean") for key in shapes if key.endswith(".running_mean")}
    if any(f"{key}.weight" in shapes for key in affine):
        return "batch"
    return "instance" if any(f"{key}.bias" in shapes for key in inner) else "none"


def _numbers(shapes: Mapping[str, tuple], pattern: str) -> list[int]:
    """The sorted numbers that stand in the place of the group of ``pattern`` in a whole key."""
    return sorted({int(m[1]) for key in shapes if (m := re.fullmatch(pattern, key))})


def _resnet(shapes: Mapping[str, tuple]) -> tuple[dict[str, Any], dict[str, Any]]:
    ngf, input_nc = shapes["model.1.weight"][:2]
    blocks = _numbers(shapes, r"model\.(\d+)\.conv_block\.\d+\.weight")
    inside = [
        index
        for index in _numbers(shapes, r"model\.\d+\.conv_block\.(\d+)\.weight")
        if any(len(shapes.get(f"model.{b}.conv_block.{index}.weight", ())) == 4 for b in blocks)
    ]
    if not blocks or len(inside) != 2:
        raise ValueError("its residual blocks do not have two convolutions each")
    last = max(_numbers(shapes, r"model\.(\d+)\.weight"))
    n_blocks = blocks[-1] - 9
    zero = inside[0] == 0
    arch = {
        "class": "ResnetGenerator",
        "input_nc": input_nc,
        "output_nc": shapes[f"model.{last}.weight"][0],
        "ngf": ngf,
        "n_blocks": n_blocks,
        "norm": _norm(shapes, "model.1", "model.4", "model.7"),
        "padding": "zero" if zero else "reflect",
        "dropout": inside[1] - inside[0] == (4 if zero else 5),
        "upsample": "resize" if last - n_blocks == 19 else "transpose",
    }
    return arch, {} if zero else {"padding": "reflect"}


def _unet(shapes: Mapping[str, tuple]) -> tuple[dict[str, Any], dict[str, Any]]:
    depth = max(key.count(".model") for key in shapes)
    arch = {
        "class": "UnetGenerator",
        "input_nc": shapes["model.model.0.weight"][1],
        "output_nc": shapes["model.model.3.weight"][1],
        "ngf": shapes["model.model.0.weight"][0],
        "num_downs": depth,
        "norm": _norm(shapes, "model.model.0", "model.model.1.model.1"),
        "dropout": False,
    }
    return arch, {"dropout": False}


def _patchgan(shapes: Mapping[str, tuple]) -> tuple[dict[str, Any], dict[str, Any]]:
    last = max(_numbers(shapes, r"model\.(\d+)\.weight"))
    ndf, input_nc = shapes["model.0.weight"][:2]
    n_layers = (last - 2) // 3
    inner = [f"model.{3 * i - 1}" for i in range(1, n_layers + 1)]
    arch = {
        "class": "NLayerDiscriminator",
        "input_nc": input_nc,
        "ndf": ndf,
        "n_layers": n_layers,
        "norm": _norm(shapes, *inner),
    }
    return arch, {}


def _pixel(shapes: Mapping[str, tuple]) -> tuple[dict[str, Any], dict[str, Any]]:
    ndf, input_nc = shapes["net.0.weight"][:2]
    arch = {"class": "PixelDiscriminator", "input_nc": input_nc, "ndf": ndf}
    return arch | {"norm": _norm(shapes, "net.2")}, {}


def current(tensors: Mapping[str, Tensor], norm: str, norm_keys: set[str]) -> dict[str, Tensor]:
    """``tensors`` as today's torch names them.

    Before 0.4 an instance norm had running statistics, which are dropped, and a batch norm did not
    count its batches, of which there are then none. Everything becomes fp32 or int64.
    """
    running = {f"{key}.{leaf}" for key in norm_keys for leaf in _RUNNING}
    kept = {k: v for k, v in tensors.items() if norm != "instance" or k not in running}
    if norm == "batch":
        counters = {
            f"{key}.num_batches_tracked": torch.zeros((), dtype=torch.int64) for key in norm_keys
        }
        kept = counters | kept
    return {k: v.float() if v.is_floating_point() else v.long() for k, v in kept.items()}
