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
    for name, check in (("python", _python), ("packages", _packages), ("torch", _torch)):
        item = _guarded(name, check)
        yield item
    if item.verdict == FAIL:
        return
    from fastcyclegan.device import resolve_device

    try:
        chosen = resolve_device(device)
    except UserError as problem:
        yield _guarded("triton", _triton, device.startswith("cuda"))
        yield Item("device", FAIL, str(problem), _device_mend(device))
        yield _guarded("disk", _disk, place)
        return
    yield _guarded("triton", _triton, chosen.type == "cuda")
    yield _guarded("gpu", _gpu, chosen)
    yield _guarded("bf16", _bf16, chosen)
    yield _guarded("compiler", _compiler, chosen)
    yield _guarded("disk", _disk, place)
    yield _guarded("ops", _ops, chosen)
    yield _guarded("kernels", _kernels, chosen, crash=NOTE)
    yield _guarded("step", _step, chosen)
    yield _guarded("torch's instance norm", _torch_instance_norm, chosen, crash=NOTE)


def _guarded(name: str, check: Callable[..., Item], *given: Any, crash: str = FAIL) -> Item:
    """What ``check`` finds; if it crashes an item of the verdict ``crash``."""
    try:
        return check(*given)
    except Exception as problem:
        first = (str(problem).splitlines() or [""])[0]
        mend = "see packages above" if isinstance(problem, ImportError) else "please report this"
        return Item(name, crash, f"{type(problem).__name__}: {first}", mend)


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


def _packages() -> Item:
    lacks = {name: lack for name, oldest in PACKAGES.items() if (lack := _lack(name, oldest))}
    if not lacks:
        return Item("packages", OK, ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    wanted = " ".join(f'"{name}>={_dotted(PACKAGES[name])}"' for name in lacks)
    found = "; ".join(f"{name} {lack}" for name, lack in lacks.items())
    return Item("packages", FAIL, found, f"pip install --upgrade {wanted}")


def _lack(name: str, oldest: tuple[int, ...]) -> str:
    """What is wrong with a package, in a few words; "" if nothing is."""
    version = _version(name)
    if version is None:
        return "is missing"
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(oldest)])
    if numbers < oldest:
        return f"{version} is too old"
    return _broken(MODULES.get(name, name), version)


def _broken(module: str, version: str) -> str:
    """That ``module`` cannot be imported, and why; "" if it can."""
    try:
        importlib.import_module(module)
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


def _triton(on_gpu: bool) -> Item:
    """Against the version that torch was built with, where torch's metadata names one.

    A CPU runs the references, so that there nothing about it hinders a training.
    """
    import torch

    version = _version("triton")
    lines = metadata.requires("torch") or [] if _version("torch") else []
    named = [line.partition(";")[0].replace(" ", "") for line in lines]
    wanted = next((n.partition("==")[2] for n in named if n.startswith("triton==")), None)
    pinned = f"triton=={wanted}" if wanted else "triton"
    lack, mend = "", f"pip install {pinned}"
    if version is None:
        lack = "not installed"
    elif wanted and version != wanted:
        lack = f"{version}, but torch {torch.__version__} wants {wanted}"
    elif lack := _broken("triton", version):
        mend = f"pip install --force-reinstall {pinned}"
    if lack and on_gpu:
        return Item("triton", FAIL, lack, mend)
    if lack:
        return Item("triton", NOTE, f"{lack}: a CPU runs the references without it", mend)
    return Item("triton", OK, version + (", the one that torch wants" if wanted else ""))


def _gpu(device: Any) -> Item:
    import torch

    driver = _driver()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"{properties.major}.{properties.minor}"
        free, total = torch.cuda.mem_get_info(device)
        found = f"{properties.name}, compute capability {capability}, driver {driver or 'unknown'}"
        return Item("gpu", OK, f"{found}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if driver and not torch.cuda.is_available():
        cause = "torch is built for CPUs" if torch.version.cuda is None else "torch cannot use it"
        mend = "install a build of torch for CUDA whose version the driver supports"
        return Item("gpu", NOTE, f"driver {driver}, but {cause}: training on the CPU", mend)
    return Item("gpu", OK, f"none is used: training on the CPU, {os.cpu_count()} cores")


def _device_mend(device: str) -> str:
    """What to do about a ``device`` that is none, or a GPU that torch does not see."""
    import torch

    if not re.fullmatch(r"cuda(:\d+)?", device):
        return "give --device auto, cpu, cuda or cuda:N"
    if torch.cuda.is_available():
        return f"give --device cuda:N with N below {torch.cuda.device_count()}"
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
    if not lack:
        return Item("compiler", OK, "--compile can be used")
    found, _, mend = lack.partition(" (")
    mend = mend.removesuffix(")") or "see triton above"
    if device.type == "cuda":
        mend += "; or train with --impl reference, which is slower"
        return Item("compiler", FAIL, f"{found}: the kernels cannot be compiled", mend)
    return Item("compiler", NOTE, f"{found}: --compile will run eager", mend)


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
    item = _judged("kernels", json.loads(done.stdout), "under Triton's interpreter against fp64")
    # a CPU uses none of them
    return item._replace(verdict=NOTE) if item.verdict == FAIL else item


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
