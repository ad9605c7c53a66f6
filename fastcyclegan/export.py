"""python -m fastcyclegan.export: trained networks as files for other programs.

torch is imported only after the options are read.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastcyclegan import command
from fastcyclegan.config import ExportConfig
from fastcyclegan.errors import UserError
from fastcyclegan.files import TEMPORARY_PREFIX, printable
from fastcyclegan.options import parse

if TYPE_CHECKING:
    import torch

    from fastcyclegan.models import Network

NETWORKS = ("G_A", "G_B", "D_A", "D_B", "G", "G_ema", "D")
# Of a file in --output where that is a folder; {name} is G_A, or G for a single generator.
FILE_NAMES = {
    "onnx": "{name}.onnx",
    "jz": "latest_net_{name}.pth",
    "examples": "net{name}.pth",
    "safetensors": "{name}.safetensors",
}
# Greatest difference between onnxruntime and PyTorch, where white is 1.
TOLERANCE = 1e-4


def main(argv: Sequence[str]) -> int:
    """Run the command with the words ``argv`` and return its exit code. Raises UserError."""
    config = parse(
        ExportConfig,
        "python -m fastcyclegan.export",
        "Write trained networks for other programs, and check what was written.",
        argv,
    )
    if config.format == "onnx":
        _require_onnx()
    networks = _load(config)
    targets = {name: _target(config, name, len(networks)) for name in networks}
    for name, trained in networks.items():
        _check_form(config.format, name, trained)
    for target in targets.values():
        _check_target(config, target)
    for name, trained in networks.items():
        if trained.assumed:
            print(trained.assumed)
        told = _WRITERS[config.format](targets[name], trained)
        print(f"wrote {printable(targets[name])}{told}")
    generator = next((x.net for name, x in networks.items() if name.startswith("G")), None)
    if config.format == "jz" and generator is not None:
        print(f"its options: {jz_options(generator.arch)}")
    return command.DONE


class Trained(NamedTuple):
    """A network, and what its file says beside that.

    Attributes:
        net: the network.
        pixel_range: of a generator its own, of a discriminator that of the images it judged.
        assumed: a line on what the file does not tell, empty for our own.
        step: the steps that it was trained for, 0 where the file does not tell.
    """

    net: Network
    pixel_range: str
    assumed: str
    step: int = 0


def _load(config: ExportConfig) -> dict[str, Trained]:
    """What --weights holds, by name: of a folder every network, for ONNX the chosen generator."""
    from fastcyclegan.models.weights import (
        GENERATOR_OF,
        load_network,
        network_files,
        open_generator,
    )

    path = Path(config.weights)
    if config.direction and (path.is_file() or config.format != "onnx"):
        raise UserError(
            "--direction chooses the generator of a run folder for --format onnx: leave it out"
        )
    if config.format == "onnx":
        net, metadata = open_generator(path, config.direction or "AtoB", "cpu", config.pixel_range)
        name = GENERATOR_OF[config.direction or "AtoB"]
        name = name if path.is_dir() and "nz" not in net.arch else "G"
        return {name: _trained(path, net, metadata)}
    files = network_files(path, NETWORKS) if path.is_dir() else {"": path}
    loaded = {name: (file, *load_network(file, config.pixel_range)) for name, file in files.items()}
    return {
        name or _letter(net): _trained(file, net, about)
        for name, (file, net, about) in loaded.items()
    }


def _trained(path: Path, net: Network, metadata: dict[str, Any]) -> Trained:
    from fastcyclegan.models.weights import told_assumptions

    told = told_assumptions(path, net, metadata)
    return Trained(net.eval(), metadata["pixel_range"], told, metadata.get("step", 0))


def _letter(net: Network) -> str:
    return "G" if net.arch["class"].endswith("Generator") else "D"


def _target(config: ExportConfig, name: str, count: int) -> Path:
    output, suffix = Path(config.output), Path(FILE_NAMES[config.format]).suffix
    if count > 1 and output.suffix == suffix:
        raise UserError(f"--output {printable(output)}: {count} networks need a folder")
    if output.suffix == suffix and not output.is_dir():
        return output
    return output / FILE_NAMES[config.format].format(name=name)


def _check_target(config: ExportConfig, target: Path) -> None:
    if target.resolve() == Path(config.weights).resolve():
        raise UserError(f"--output would replace --weights {printable(target)}: write elsewhere")
    if target.exists() and not config.overwrite:
        raise UserError(f"--output {printable(target)} exists: --overwrite replaces it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        name = printable(target.parent)
        raise UserError(f"--output {name} cannot be made: {problem.strerror}") from None


def _check_form(form: str, name: str, trained: Trained) -> None:
    """Raise UserError if the other program has no such network."""
    arch = trained.net.arch | {"pixel_range": trained.pixel_range}
    lack = {"jz": jz_lack, "examples": _examples_lack}.get(form, lambda arch: None)(arch)
    if lack:
        raise UserError(f"--format {form}: {name} is a {trained.net.title}; {lack}")


def jz_lack(arch: dict[str, Any]) -> str | None:
    """Why JZ's code has not the network of ``arch``, or None.

    ``arch`` may say the ``pixel_range`` of a discriminator, whose own does not.
    """
    kinds = "ResnetGenerator", "UnetGenerator", "NLayerDiscriminator", "PixelDiscriminator"
    if arch["class"] not in kinds:
        return "JZ has none of this kind"
    if arch.get("pixel_range", "tanh") != "tanh":
        return f"its pixel range is {arch['pixel_range']}, and JZ's images are in [-1, 1] always"
    if arch["class"] == "ResnetGenerator":
        if arch["n_blocks"] not in (6, 9):
            return "JZ's --netG has 6 or 9 blocks"
        for key, only in (("padding", "reflect"), ("upsample", "transpose")):
            if arch[key] != only:
                return f"JZ's --netG has {key} {only} alone"
        if arch.get("residual_relu"):
            return "JZ's residual blocks have no ReLU behind the sum"
    if arch["class"] == "UnetGenerator" and arch["num_downs"] not in (7, 8):
        return "JZ's --netG unet_128 has 7 levels and unet_256 has 8"
    return None


def _examples_lack(arch: dict[str, Any]) -> str | None:
    if not arch["class"].startswith("DCGAN"):
        return "pytorch/examples has a DCGAN alone"
    if arch.get("pixel_range", "tanh") != "tanh":
        told = f"its pixel range is {arch['pixel_range']}"
        return f"{told}, and pytorch/examples' images are in [-1, 1] always"
    fixed = {"size": 64, "norm": "batch"}
    wrong = [f"{key} {value}" for key, value in fixed.items() if arch.get(key, value) != value]
    return f"pytorch/examples has {' and '.join(wrong)} alone" if wrong else None


def jz_options(arch: dict[str, Any]) -> str:
    """The options of JZ's test.py that build the generator of ``arch``."""
    if arch["class"] == "ResnetGenerator":
        kind = f"resnet_{arch['n_blocks']}blocks"
    else:
        kind = {7: "unet_128", 8: "unet_256"}[arch["num_downs"]]
    words = [f"--netG {kind} --ngf {arch['ngf']} --norm {arch['norm']}"]
    words += [f"--{key} {arch[key]}" for key in ("input_nc", "output_nc") if arch[key] != 3]
    words += [] if arch["dropout"] else ["--no_dropout"]
    words += ["--eval"] if arch["dropout"] or arch["norm"] == "batch" else []
    return " ".join(words)


def _write_pth(target: Path, trained: Trained) -> str:
    from fastcyclegan.models.examples import write_pth

    with _refusing(target):
        write_pth(target, trained.net)
    return ""


def _write_safetensors(target: Path, trained: Trained) -> str:
    from fastcyclegan.models.weights import save_network

    with _refusing(target):
        save_network(target, trained.net, step=trained.step, pixel_range=trained.pixel_range)
    return ""


@contextmanager
def _refusing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise UserError(f"cannot write {printable(target)}: {problem.strerror}") from None


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError:
            raise UserError(f"--format onnx needs {name}: pip install -e '.[export]'") from None


def _write_onnx(target: Path, trained: Trained) -> str:
    """Write, compare with PyTorch at three sizes, and only then give the file its name."""
    net = trained.net
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}.onnx")
    try:
        with _refusing(target):
            _save_onnx(temporary, net)
            difference = _difference(temporary, net)
            if not difference <= TOLERANCE:
                raise UserError(
                    f"--format onnx: onnxruntime differs from PyTorch by {difference:.1e}, more "
                    f"than {TOLERANCE:.0e}; nothing was written"
                )
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return f": differs from PyTorch by {difference:.1e} at most, at three sizes in onnxruntime"


def _inputs(net: Network) -> list[torch.Tensor]:
    """Three random inputs of different sizes, or numbers where the network makes images."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if "nz" in net.arch:
        return [torch.randn(n, net.arch["nz"], 1, 1, generator=generator) for n in (2, 1, 5)]
    m, channels = net.multiple, net.arch["input_nc"]
    side = -(-max(64, net.smallest) // m) * m
    *_, centre, half = _range(net)
    # The first, by which torch.export traces, has no side of one multiple: it takes 1 for fixed.
    shapes = (2, side + m, side + 2 * m), (1, side, side), (1, side + 2 * m, side)
    return [
        (torch.rand(n, channels, h, w, generator=generator) * 2 - 1) * half + centre
        for n, h, w in shapes
    ]


def _range(net: Network) -> tuple[float, ...]:
    from fastcyclegan.pixel_range import PIXEL_RANGES

    return PIXEL_RANGES[net.arch.get("pixel_range", "tanh")]


def _save_onnx(path: Path, net: Network) -> None:
    import torch

    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    if "nz" not in net.arch:
        least = -(-net.smallest // net.multiple)
        for axis, name in ((2, "rows"), (3, "columns")):
            dims[axis] = net.multiple * torch.export.Dim(name, min=least)
    quiet = logging.getLogger("torch.onnx")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                net,
                (_inputs(net)[0],),
                dynamo=True,
                dynamic_shapes=(dims,),
                input_names=["noise" if "nz" in net.arch else "image"],
                output_names=["made" if "nz" in net.arch else "translation"],
                verbose=False,
            )
        told = {"arch": json.dumps(net.arch), "pixel_range": net.arch.get("pixel_range", "tanh")}
        program.model.metadata_props.update(told)
        program.save(path, external_data=False)
    finally:
        quiet.setLevel(before)


def _difference(path: Path, net: Network) -> float:
    """Greatest difference between onnxruntime and PyTorch, where white is 1; nan counts."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [wanted] = session.get_inputs()
    *_, half = _range(net)
    differences = []
    for x in _inputs(net):
        with torch.no_grad():
            truth = net(x).numpy()
        [found] = session.run(None, {wanted.name: x.numpy()})
        differences.append(np.abs(found - truth).max() / half)
    return float(np.max(differences))


_WRITERS = {
    "onnx": _write_onnx,
    "jz": _write_pth,
    "examples": _write_pth,
    "safetensors": _write_safetensors,
}

if __name__ == "__main__":
    sys.exit(command.run(main))
