"""Registers, memory and load widths of every kernel, compiled ahead of time; needs no GPU.

    python -m bench.resources [--arch 90 ...] [--dtype bfloat16 ...] [--few] [--list]
                              [--out FILE] [--write]

Compiles each kernel in the configurations that the networks use, for each architecture, and prints
one row per kernel and configuration, with the registers on each architecture. The configurations
are recorded from the networks themselves, run forward and backward on tensors without data; one
that several of them share is named after the first. ``--write`` stores the registers in
results/resources.json, which the tests hold them to, unless a kernel spills; ``--out`` writes all
figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcyclegan.kernels import (
    augment,
    batch_norm,
    image_pool,
    instance_norm,
    instance_norm_bwd,
    norm_stats,
    reflection_pad,
    windows,
)
from fastcyclegan.kernels.dispatch import PLAIN_ARGS
from fastcyclegan.models import build

ARCHS = (80, 86, 89, 90, 100, 120)
TABLE = Path(__file__).parent / "results" / "resources.json"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
POINTERS |= {torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1"}
# The networks of the options' defaults first; every block of a trunk is the same, but for the last.
RESNET = {"class": "ResnetGenerator", "n_blocks": 2}
NETWORKS = (
    RESNET,
    {"class": "NLayerDiscriminator"},
    {"class": "UnetGenerator"},
    {"class": "PixelDiscriminator"},
    RESNET | {"dropout": True, "upsample": "resize"},
    RESNET | {"norm": "batch"},
)
SIZES, BATCHES = (256, 128), (2, 1, 8)
# First, so that --few names what they share with others as the whole list does.
DCGAN = (
    ({"class": "DCGANGenerator"}, (64, 100, 1, 1)),
    ({"class": "DCGANDiscriminator"}, (64, 3, 64, 64)),
)
# Channels and halo of the images that a step is given.
WINDOWS = ((3, 0), (1, 0), (3, 3))
MODULES = (
    augment,
    batch_norm,
    image_pool,
    instance_norm,
    instance_norm_bwd,
    norm_stats,
    reflection_pad,
    windows,
)
OPS = {
    "augment": augment._augment,
    "draw_windows": windows._draw_windows,
    "image_pool": image_pool._image_pool,
    "undo_image_pool": image_pool._undo_image_pool,
    "instance_norm_fwd": instance_norm._instance_norm_fwd,
    "instance_norm_bwd": instance_norm_bwd.instance_norm_bwd,
    "reflection_pad_fwd": reflection_pad._reflection_pad_fwd,
    "reflection_pad_bwd": reflection_pad._reflection_pad_bwd,
    "batch_norm_stats": batch_norm._batch_norm_stats,
    "batch_norm_fwd": batch_norm._batch_norm_fwd,
    "batch_norm_bwd": batch_norm._batch_norm_bwd,
}


class Calls(TorchDispatchMode):
    """Notes every call of our ops; convolutions lay out their results as cuDNN does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[tuple, tuple[str, dict[str, Any]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "fastcyclegan":
            key = (name, *(layout(x) if isinstance(x, torch.Tensor) else x for x in args))
            names = [argument.name for argument in func._schema.arguments]
            self.calls.setdefault(key, (name, dict(zip(names, args, strict=True))))
        return out.to(memory_format=torch.channels_last) if name == "convolution" else out


def layout(x: torch.Tensor) -> tuple:
    return tuple(x.shape), x.stride(), x.storage_offset(), x.dtype


def op_calls(
    dtype: torch.dtype, networks: Sequence[dict], sizes: Sequence[int], batches: Sequence[int]
) -> list[tuple[str, dict[str, Any]]]:
    """(op, arguments) of every distinct call in a forward and a backward of ``networks``."""
    shapes = [(arch, (n, 3, size, size)) for size, n, arch in product(sizes, batches, networks)]
    with Calls() as recorder, torch.device("meta"):
        for arch, shape in (*DCGAN, *shapes):
            net = build(arch)
            net.impl = "triton"
            if shape[2] % net.multiple:
                continue
            weights = [w.detach().requires_grad_() for w in net.weights_in(dtype)]
            x = torch.empty(shape, dtype=dtype)
            x = x.to(memory_format=torch.channels_last).requires_grad_()
            y = net.compute(x, weights)
            torch.autograd.grad(y, [x, *weights], torch.empty_like(y))
    return list(recorder.calls.values())


def data_calls(dtype: torch.dtype) -> list[tuple[str, dict[str, Any]]]:
    """As :func:`op_calls`, of what a step does with images besides: cutting them, and the pool."""
    with Calls() as recorder, torch.device("meta"):
        for channels, pad in WINDOWS:
            pixels = torch.empty((2**20, channels), dtype=torch.uint8)
            plan = [torch.empty(2, dtype=torch.int64) for _ in augment.PLAN]
            augment.augment(pixels, *plan, (256, 256), dtype, pad=pad, impl="triton")
        count, before, seed = (torch.empty((), dtype=torch.int64) for _ in range(3))
        table, order = (torch.empty((rows, 1000), dtype=torch.int64) for rows in (3, 2))
        for epochs in (order, None):
            drawn = torch.empty((1,), dtype=torch.int64), seed, table, (256, 256), epochs, count
            windows.draw_windows(*drawn, stream=0, impl="triton")
        shut = torch.empty((), dtype=torch.bool)
        for n in BATCHES:
            pool, images = (
                torch.empty((k, 3, 256, 256), dtype=dtype).to(memory_format=torch.channels_last)
                for k in (50, n)
            )
            drawn = seed, 0, torch.empty((n,), dtype=torch.int64)
            image_pool.image_pool(pool, count, images, *drawn, impl="triton")
            undone = pool, count, images, before, *drawn, shut
            image_pool.undo_image_pool(*undone, impl="triton")
    return list(recorder.calls.values())


def title(arguments: dict[str, Any]) -> str:
    """What an op is called with, for people: ``relu pad 1, 2x256x64x64``."""
    if "pool" in arguments:
        return f"batch {len(arguments['number'])}"
    if "table" in arguments:
        return "by epochs" if arguments["order"] is not None else "drawn"
    if "pixels" in arguments:
        channels, pad = arguments["pixels"].shape[1], arguments["pad"]
        return f"{channels} channels" + (f" pad {pad}" if pad else "")
    x = arguments.get("x", arguments.get("dy"))
    words = ["batch norm"] if {"training", "momentum"} & arguments.keys() else []
    words += [arguments["act"]] if arguments.get("act", "none") != "none" else []
    around = arguments.get("residual") is not None or arguments.get("has_residual")
    words += ["residual"] if around else []
    words += ["skip"] if arguments.get("dskip") is not None else []
    words += [f"pad {arguments['pad']}"] if arguments.get("pad") else []
    return f"{' '.join(words or ['plain'])}, {'x'.join(map(str, x.shape))}"


class Launches:
    """Stands in for a kernel and notes the arguments that a launcher gives it."""

    def __init__(self, kernel: Any, launches: list) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple) -> Launches:
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        self.launches.append((self.kernel, args, options))


def launches(name: str, arguments: dict[str, Any]) -> list[tuple[Any, tuple, dict]]:
    """(kernel, arguments, options) of what the op ``name`` launches."""
    found: list[tuple[Any, tuple, dict]] = []
    kernels = [
        (module, name, value)
        for module in MODULES
        for name, value in vars(module).items()
        if name.endswith("_kernel")
    ]
    for module, kernel_name, kernel in kernels:
        setattr(module, kernel_name, Launches(kernel, found))
    try:
        OPS[name]._init_fn(**arguments)
    finally:
        for module, kernel_name, kernel in kernels:
            setattr(module, kernel_name, kernel)
    return found


def configurations(
    calls: Sequence[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[str, Any, tuple, dict]]:
    """(case, kernel, arguments, options) of every distinct kernel that ``calls`` launch."""
    seen = set()
    for name, op_arguments in calls:
        for kernel, args, options in launches(name, op_arguments):
            key = (kernel.fn.__name__, *map(str, describe(kernel, args, options)))
            if key not in seen:
                seen.add(key)
                yield title(op_arguments), kernel, args, options


def describe(kernel: Any, args: tuple, options: dict) -> tuple[dict, dict, dict]:
    """Signature, constants and alignments as Triton derives them at a launch."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    signature, constants, attrs = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                attrs[(index,)] = [["tt.divisibility", 16]]
        elif name in PLAIN_ARGS or (type(value) is int and value != 1 and name not in options):
            signature[name] = "i32"
            if value % 16 == 0 and name not in PLAIN_ARGS:
                attrs[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            constants[name] = value
    return signature, constants, attrs


def compile_kernel(kernel: Any, args: tuple, options: dict, arch: int) -> dict[str, int]:
    """Registers per thread, bytes of stack, local and shared memory, and 16-byte accesses."""
    signature, constants, attrs = describe(kernel, args, options)
    source = ASTSource(kernel, signature, constants, attrs)
    chosen = {name: options[name] for name in ("num_warps", "maxnreg") if name in options}
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=chosen)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = {
        key: int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")
    }
    ptx = binary.asm["ptx"]
    return {
        "registers": figures["REG"],
        "stack": figures["STACK"],
        "local": figures["LOCAL"],
        "shared": binary.metadata.shared,
        "loads_16_bytes": len(re.findall(r"\bld\.global[.\w:]*\.v4\.b32", ptx)),
        "stores_16_bytes": len(re.findall(r"\bst\.global[.\w:]*\.v4\.b32", ptx)),
    }


def about(case: str, kernel: Any, args: tuple) -> dict[str, Any]:
    """What a row is about, without its architecture and figures."""
    tensors = (x for x in args if isinstance(x, torch.Tensor))
    dtype = next((x.dtype for x in tensors if x.is_floating_point()), torch.int64)
    name = kernel.fn.__name__.strip("_")
    return {"kernel": name, "case": case, "dtype": str(dtype).removeprefix("torch.")}


def measure(
    archs: Sequence[int], calls: Sequence[tuple[str, dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """One row per kernel, configuration and architecture."""
    for case, kernel, args, options in configurations(calls):
        for arch in archs:
            figures = compile_kernel(kernel, args, options, arch)
            yield {**about(case, kernel, args), "arch": arch, **figures}


def registers(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Registers per thread by kernel and configuration, then by architecture."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        name = f"{row['kernel']}, {row['case']}, {row['dtype']}"
        found.setdefault(name, {})[f"sm_{row['arch']}"] = row["registers"]
    return found


def table_text(table: dict[str, dict[str, int]]) -> str:
    """The table as JSON, one line per kernel and configuration."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(table[name])}" for name in table)
    return f'{{"triton": "{triton.__version__}",\n "registers": {{\n{lines}\n}}}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.resources")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHS)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument(
        "--few", action="store_true", help="of JZ's, ResNet and PatchGAN, 256 px, batch 2"
    )
    parser.add_argument("--list", action="store_true", help="the rows alone, nothing is compiled")
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    parser.add_argument("--write", action="store_true", help=f"store them in {TABLE.name}")
    args = parser.parse_args()
    chosen = (NETWORKS[:2], SIZES[:1], BATCHES[:1]) if args.few else (NETWORKS, SIZES, BATCHES)
    dtypes = [DTYPES[name] for name in args.dtype]
    calls = [call for dtype in dtypes for call in (*op_calls(dtype, *chosen), *data_calls(dtype))]
    if args.list:
        rows = [about(case, kernel, given) for case, kernel, given, _ in configurations(calls)]
    else:
        rows = list(measure(args.arch, calls))
        table = registers(rows)
        for name, counts in table.items():
            print(f"{name:72}", *(f"{arch} {count:3}" for arch, count in counts.items()))
    if args.out:
        args.out.write_text(json.dumps(rows) + "\n")
    spilling = [row for row in rows if row.get("stack") or row.get("local")]
    if spilling:
        parser.exit(1, "".join(f"spills: {row}\n" for row in spilling))
    if args.write:
        TABLE.write_text(table_text(table))


if __name__ == "__main__":
    main()
