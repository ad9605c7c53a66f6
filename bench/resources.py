"""Registers, memory and load widths of every kernel, compiled ahead of time; needs no GPU.

    python -m bench.resources [--arch 90 ...] [--dtype bfloat16 ...] [--few] [--list]
                              [--out FILE] [--write]

Compiles each kernel in the configurations that the networks use, for each architecture, and prints
one row per kernel and configuration, with registers and shared memory on each architecture. The
configurations are recorded from the networks themselves, those of all presets among them
(``net_calls.py``); one that several of them share is named after the first. ``--write`` stores
registers and bytes of shared memory in results/resources.json, which the tests hold them to, unless
a kernel spills; ``--out`` writes all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.net_calls import BATCHES, NETWORKS, SIZES, data_calls, op_calls
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

ARCHS = (80, 86, 89, 90, 100, 120)
TABLE = Path(__file__).parent / "results" / "resources.json"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
POINTERS |= {torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1"}
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


def title(arguments: dict[str, Any]) -> str:
    """What an op is called with, for people: ``relu pad 1, 2x256x64x64``."""
    if "pool" in arguments:
        return f"batch {len(arguments['number'])}"
    if "table" in arguments:
        words = ["by epochs" if arguments["order"] is not None else "drawn"]
        words += [] if arguments["h"] else ["whole"]
        return " ".join(words if arguments["flip"] else [*words, "no flip"])
    if "pixels" in arguments:
        channels, pad = arguments["pixels"].shape[1], arguments["pad"]
        return f"{channels} channels" + (f" pad {pad}" if pad else "")
    x = arguments.get("x", arguments.get("dy"))
    of_batch = {"training", "momentum"} & arguments.keys()
    words = ["batch norm"] if of_batch else []
    affine = not of_batch and arguments.get("weight") is not None
    words += ["affine"] if affine else []
    words += [arguments["act"]] if arguments.get("act", "none") != "none" else []
    around = arguments.get("residual") is not None or arguments.get("has_residual")
    words += ["residual"] if around else []
    # backward has it in the output that is kept
    rectified = arguments.get("residual_relu") or (around and arguments.get("y") is not None)
    words += ["relu"] if rectified else []
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


def tabulated(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """[registers per thread, bytes of shared memory] by kernel and case, then by architecture.

    Raises:
        ValueError: two rows have the same name: :func:`title` must tell them apart.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        name = f"{row['kernel']}, {row['case']}, {row['dtype']}"
        figures = found.setdefault(name, {})
        if f"sm_{row['arch']}" in figures:
            raise ValueError(f"two configurations are called {name}")
        figures[f"sm_{row['arch']}"] = [row["registers"], row["shared"]]
    return found


def table_text(table: dict[str, dict[str, list[int]]]) -> str:
    """The table as JSON, one line per kernel and configuration."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(table[name])}" for name in table)
    return f'{{"triton": "{triton.__version__}",\n "registers, shared": {{\n{lines}\n}}}}\n'


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
        table = tabulated(rows)
        for name, figures in table.items():
            print(f"{name:72}", *(f"{arch} {r:3} {b:5} B" for arch, (r, b) in figures.items()))
    if args.out:
        args.out.write_text(json.dumps(rows) + "\n")
    spilling = [row for row in rows if row.get("stack") or row.get("local")]
    if spilling:
        parser.exit(1, "".join(f"spills: {row}\n" for row in spilling))
    if args.write:
        TABLE.write_text(table_text(table))


if __name__ == "__main__":
    main()
