"""Which device and which number format a command runs with."""

from dataclasses import dataclass

import torch

from fastcyclegan.errors import UserError
from fastcyclegan.launch import Launch


@dataclass(frozen=True)
class Precision:
    """A resolved ``--precision``: its name, and the dtype that networks compute in."""

    name: str
    dtype: torch.dtype


def resolve_device(text: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` is the first GPU, else the CPU.

    Raises:
        UserError: not a device, or one that this machine lacks.
    """
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UserError(f"--device {text}: not auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {text}: not auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            raise UserError(f"--device {text}: torch sees {count} CUDA GPUs here")
        return torch.device("cuda", index)
    return torch.device("cpu")


def own_device(text: str, launch: Launch) -> torch.device:
    """As :func:`resolve_device`; of several processes on a machine each has a GPU of its own.

    Raises:
        UserError: also for a GPU's number, or when there are not enough of them.
    """
    device = resolve_device(text)
    if launch.world == 1 or device.type == "cpu":
        return device
    if ":" in text:
        raise UserError(f"--device {text}: each process takes the GPU of its own number; use cuda")
    count = torch.cuda.device_count()
    if launch.local_rank >= count:
        raise UserError(
            f"torch sees {count} CUDA GPUs here, and each process needs its own: give torchrun "
            f"--nproc_per_node={count}, or train with --device cpu"
        )
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)
    return device


def resolve_precision(text: str, device: torch.device) -> Precision:
    """The number format that ``--precision`` names for ``device``, and its switches set.

    ``auto`` is bf16 where the device computes in it (avx512_bf16 or AMX on a CPU), else fp32.

    Raises:
        UserError: tf32 on a CPU.
    """
    if text == "auto":
        text = "bf16" if _has_bf16(device) else "fp32"
    if text == "tf32" and device.type == "cpu":
        raise UserError("--precision tf32: a CPU has none; use bf16 or fp32")
    torch.backends.cudnn.allow_tf32 = text == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = text == "tf32"
    return Precision(text, torch.bfloat16 if text == "bf16" else torch.float32)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
