"""What ``python -m fastcyclegan.doctor`` looks at: an item for each thing that training needs.

Only the standard library is imported at the top, so that a missing package is an item too.
"""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from fastcyclegan.errors import UserError
from fastcyclegan.version import __version__

OK, NOTE, FAIL = "ok", "note", "fail"
PYTHON, TORCH = (3, 11), (2, 11)
# The oldest version of each that will do, as in setup.py.
PACKAGES = {
    "numpy": (2, 0),
    "pillow": (12, 2),
    "nvtx": (0, 2, 12),
    "safetensors": (0, 5),
    "rich": (13, 7),
    "jinja2": (3, 1),
}
MODULES = {"pillow": "PIL"}  # others are imported by the name of their package
# A default run keeps some checkpoints of 0.45 GiB each.
WANTED_BYTES, LEAST_BYTES = 4 * 2**30, 2**29
INTERPRETED = """
import json, torch
from fastcyclegan.op_checks import errors
print(json.dumps(errors(torch.device("cpu"), "triton")))
"""


class Item(NamedTuple):
    """One finding: ``verdict`` is OK, NOTE (training runs) or FAIL; ``mend`` says what to do."""

    name: str
    verdict: str
    found: str
    mend: str = ""


def examine(device: str, place: Path) -> Iterator[Item]:
    """Every item, for a training on ``device`` (as ``--device``) that writes to ``place``."""
    yield _python()
    yield from _packages()
    torch_item = _torch()
    yield torch_item
    if torch_item.verdict == FAIL:
        return
    from fastcyclegan.device import resolve_device

    yield _triton()
    try:
        chosen = resolve_device(device)
    except UserError as problem:
        yield Item("device", FAIL, str(problem), _device_mend())
        return
    yield from _gpu(chosen)
    yield _bf16(chosen)
    yield _compiler(chosen)
    yield _disk(place)
    for name, check in (("ops", _ops), ("kernels", _kernels), ("step", _step)):
        yield _guarded(name, check, chosen)
    yield _torch_instance_norm(chosen)


def _guarded(name: str, check: Callable[[Any], Item], device: Any) -> Item:
    try:
        return check(device)
    except Exception as problem:
        first = (str(problem).splitlines() or [""])[0]
        return Item(name, FAIL, f"{type(problem).__name__}: {first}", "please report this")


def _python() -> Item:
    found = f"{platform.python_version()}, fastcyclegan {__version__}"
    if sys.version_info < PYTHON:
        return Item("python", FAIL, found, "install Python 3.11 or newer")
    return Item("python", OK, found)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Item]:
    lacks = {name: lack for name, oldest in PACKAGES.items() if (lack := _lack(name, oldest))}
    if not lacks:
        told = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
        yield Item("packages", OK, told)
        return
    wanted = " ".join(f'"{name}>={_dotted(PACKAGES[name])}"' for name in lacks)
    found = "; ".join(f"{name} {lack}" for name, lack in lacks.items())
    yield Item("packages", FAIL, found, f"pip install --upgrade {wanted}")


def _lack(name: str, oldest: tuple[int, ...]) -> str:
    """What is wrong with a package, in a few words; "" if nothing is."""
    version = _version(name)
    if version is None:
        return "is missing"
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(oldest)])
    if numbers < oldest:
        return f"{version} is too old"
    try:
        importlib.import_module(MODULES.get(name, name))
    except Exception as problem:
        first = (str(problem).splitlines() or [""])[0]
        return f"{version} cannot be imported ({first})"
    return ""


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _torch() -> Item:
    mend = "pip install torch, of at least 2.11"
    try:
        import torch
    except (ImportError, OSError) as problem:
        return Item("torch", FAIL, f"cannot be imported: {problem}", mend)
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    found = f"{torch.__version__.partition('+')[0]}, built {build}"
    numbers = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return Item("torch", FAIL if numbers < TORCH else OK, found, mend if numbers < TORCH else "")


def _triton() -> Item:
    """Against the version that torch was built with, where torch's metadata names one."""
    import torch

    version = _version("triton")
    lines = metadata.requires("torch") or [] if _version("torch") else []
    named = [line.partition(";")[0].replace(" ", "") for line in lines]
    wanted = next((n.partition("==")[2] for n in named if n.startswith("triton==")), None)
    if version is None:
        needed = torch.version.cuda is not None
        found = "not installed" if needed else "not installed: a CPU runs the references"
        command = f"pip install triton{'==' + wanted if wanted else ''}"
        return Item("triton", FAIL if needed else NOTE, found, command)
    if wanted and version != wanted:
        found = f"{version}, but torch {torch.__version__} wants {wanted}"
        return Item("triton", FAIL, found, f"pip install triton=={wanted}")
    return Item("triton", OK, version + (", the one that torch wants" if wanted else ""))


def _gpu(device: Any) -> Iterator[Item]:
    import torch

    driver = _driver()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"{properties.major}.{properties.minor}"
        free, total = torch.cuda.mem_get_info(device)
        found = f"{properties.name}, compute capability {capability}, driver {driver or 'unknown'}"
        yield Item("gpu", OK, f"{found}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    elif driver and not torch.cuda.is_available():
        cause = "torch is built for CPUs" if torch.version.cuda is None else "torch cannot use it"
        mend = "install a build of torch for CUDA whose version the driver supports"
        yield Item("gpu", NOTE, f"driver {driver}, but {cause}: training on the CPU", mend)
    else:
        yield Item("gpu", OK, f"none is used: training on the CPU, {os.cpu_count()} cores")


def _device_mend() -> str:
    """What to do where torch does not see a GPU that was asked for."""
    import torch

    driver = _driver()
    if driver is None:
        return "no NVIDIA driver answers (nvidia-smi): install one, or give another --device"
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    return (
        f"torch is built {build}, the driver is {driver}: install a build of torch for a CUDA that "
        "the driver supports, or give another --device"
    )


def _driver() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [None])[0]


def _bf16(device: Any) -> Item:
    from fastcyclegan.device import resolve_precision

    if resolve_precision("auto", device).name == "bf16":
        return Item("bf16", OK, "computed by the device: the default precision")
    return Item("bf16", NOTE, "not computed by the device: training in fp32, which is slower")


def _compiler(device: Any) -> Item:
    from fastcyclegan.steps.compilation import missing_compiler

    lack = missing_compiler(device)
    if lack:
        found, _, mend = lack.partition(" (")
        return Item(
            "compiler",
            NOTE,
            f"{found}: --compile will run eager",
            mend.removesuffix(")") or "see triton above",
        )
    return Item("compiler", OK, "--compile can be used")


def _disk(place: Path) -> Item:
    from fastcyclegan.runs.folder import require_place

    try:
        require_place(place)
    except UserError as problem:
        return Item("disk", FAIL, str(problem), "choose another --checkpoints_dir")
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 2**30:.1f} GiB free for {place}"
    mend = "make room, or choose another --checkpoints_dir; a default run takes about 2 GiB"
    if free < WANTED_BYTES:
        return Item("disk", FAIL if free < LEAST_BYTES else NOTE, found, mend)
    return Item("disk", OK, found)


def _ops(device: Any) -> Item:
    from fastcyclegan.op_checks import errors

    impl = "triton" if device.type == "cuda" else "ref"
    what = "the kernels" if impl == "triton" else "the references"
    return _judged("ops", errors(device, impl), f"{what} in fp32 against fp64")


def _kernels(device: Any) -> Item:
    """The kernels where no GPU runs them: under Triton's interpreter, in a process of its own."""
    if device.type == "cuda":
        return Item("kernels", OK, "run on the GPU: see ops")
    if _version("triton") is None:
        return Item("kernels", NOTE, "not tried without triton; a CPU does not need them")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.splitlines() or ["no output"])[-1]
        return Item("kernels", NOTE, f"Triton's interpreter fails: {last}", "see triton above")
    return _judged("kernels", json.loads(done.stdout), "under Triton's interpreter against fp64")


def _judged(name: str, errors: dict[str, float], how: str) -> Item:
    from fastcyclegan.op_checks import TOLERANCE

    told = ", ".join(f"{op} {error:.0e}" for op, error in errors.items())
    bad = [op for op, error in errors.items() if not error <= TOLERANCE]
    if bad:
        mend = f"please report this: {', '.join(bad)} differ by more than {TOLERANCE:g}"
        return Item(name, FAIL, f"{how}: {told}", mend)
    return Item(name, OK, f"{how}: {told}")


def _step(device: Any) -> Item:
    """Two steps of a small training."""
    import torch

    from fastcyclegan.config import TrainConfig
    from fastcyclegan.device import resolve_precision
    from fastcyclegan.steps.assembly import make_networks, make_settings
    from fastcyclegan.steps.cyclegan import CycleGAN, fused_step

    config = TrainConfig(netG="resnet_1blocks", ngf=8, ndf=8, pool_size=2)
    precision = resolve_precision("auto", device)
    shape = (3, 32, 32)
    networks = make_networks(config, device)
    model = CycleGAN(networks, make_settings(config, precision), shape, shape)
    layout = {"memory_format": torch.channels_last}
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, *shape).to(device, precision.dtype)
    number = torch.zeros(1, dtype=torch.int64, device=device)
    for _ in range(2):
        pair = image.contiguous(**layout), image.flip(3).contiguous(**layout)
        losses = fused_step(model, *pair, number)
    if not losses.isfinite().all():
        return Item("step", FAIL, f"losses are not finite: {losses.tolist()}", "please report this")
    return Item("step", OK, f"two steps of a small training in {precision.name} on {device}")


def _torch_instance_norm(device: Any) -> Item:
    """Whether PyTorch's own has the gradient that is wrong for one channels_last image."""
    import torch

    x = torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    builtin = getattr(torch.nn.functional, "instance_norm")  # noqa: B009  named in no code of ours
    dy = torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.to(device).contiguous(memory_format=layout).requires_grad_()
        given = dy.to(device).contiguous(memory_format=layout)
        found += torch.autograd.grad(builtin(leaf), leaf, given)
    error = float((found[0] - found[1]).abs().max())
    if error > 1e-9:
        return Item(
            "torch's instance norm",
            NOTE,
            f"its gradient is off by {error:.2g} for one channels_last image, without a word",
            "nothing to do here: fastcyclegan has its own. Beware of it in other code",
        )
    return Item("torch's instance norm", OK, "its gradient is right in channels_last")
