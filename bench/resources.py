"""Registers, memory and load widths of every kernel, compiled ahead of time; needs no GPU.

    python -m bench.resources [--arch 90 ...] [--dtype bfloat16 ...] [--out FILE] [--write]

Compiles each kernel in the configurations that the networks use, for each architecture, and prints
one row per kernel and configuration, with the registers on each architecture. ``--write`` stores
them in results/resources.json, which the tests hold them to; ``--out`` writes all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcyclegan.kernels import instance_norm, instance_norm_bwd, reflection_pad
from fastcyclegan.kernels.dispatch import PLAIN_ARGS

ARCHS = (80, 86, 89, 90, 100, 120)
TABLE = Path(__file__).parent / "results" / "resources.json"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TRUNK, WIDE = (2, 256, 64, 64), (2, 64, 256, 256)
# Name, shape of x, act, residual, pad: the norms of the networks.
NORMS = (
    ("relu", WIDE, "relu", False, 0),
    ("relu pad 1", TRUNK, "relu", False, 1),
    ("relu pad 3", WIDE, "relu", False, 3),
    ("residual", TRUNK, "none", True, 0),
    ("residual pad 1", TRUNK, "none", True, 1),
    ("leaky_relu", (2, 512, 31, 31), "leaky_relu", False, 0),
)
PADS = (("3 channels pad 3", (2, 3, 256, 256)), ("64 channels pad 3", WIDE))


class Recorder:
    """Stands in for a kernel and notes the arguments that a launcher gives it."""

    def __init__(self, kernel: Any, case: str, launches: list) -> None:
        self.kernel, self.case, self.launches = kernel, case, launches

    def __getitem__(self, grid: tuple) -> Recorder:
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        self.launches.append((self.case, self.kernel, args, options))


def _meta(shape: tuple, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(
        shape, dtype=dtype, device="meta", memory_format=torch.channels_last
    ).requires_grad_()


def _run_norm(shape, act, residual, pad, dtype) -> None:
    x = _meta(shape, dtype)
    skip = _meta(shape, dtype) if residual else None
    y, mean, rstd = instance_norm._outputs(x, pad)
    stats = (mean, rstd)
    instance_norm._launch(x, None, None, skip, act, 0.2, pad, 1e-5, y, *stats)
    skips = (None, _meta(shape, dtype)) if residual and pad else (None,)
    for dskip in skips:
        dx, dresidual, *_ = instance_norm_bwd._outputs(x, None, None, residual)
        grads = (dx, dresidual if residual else None, None)
        instance_norm_bwd._launch(y, dskip, x, None, *stats, None, None, act, 0.2, pad, *grads)


def _run_pad(shape, pad, dtype) -> None:
    x = _meta(shape, dtype)
    y = reflection_pad._padded_like(x, pad)
    reflection_pad._launch_fwd(x, y, pad)
    reflection_pad._launch_bwd(y, torch.empty_like(x), pad)


def launches(dtype: torch.dtype) -> Iterator[tuple[str, Any, tuple, dict]]:
    """(case, kernel, arguments, options) of every distinct kernel that the networks launch."""
    modules = (instance_norm, instance_norm_bwd, reflection_pad)
    kernels = [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("_kernel")
    ]
    found: list[tuple[str, Any, tuple, dict]] = []
    cases = [(name, lambda n=n: _run_norm(*n, dtype)) for name, *n in NORMS]
    cases += [(name, lambda s=s: _run_pad(s, 3, dtype)) for name, s in PADS]
    for case, run in cases:
        for module, name, kernel in kernels:
            setattr(module, name, Recorder(kernel, case, found))
        try:
            run()
        finally:
            for module, name, kernel in kernels:
                setattr(module, name, kernel)
    seen = set()
    for case, kernel, args, options in found:
        signature, constants, attrs = describe(kernel, args, options)
        key = (kernel.fn.__name__, str(signature), str(constants), str(attrs))
        if key not in seen:
            seen.add(key)
            yield case, kernel, args, options


def describe(kernel: Any, args: tuple, options: dict) -> tuple[dict, dict, dict]:
    """Signature, constants and alignments as Triton derives them at a launch."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    signature, constants, attrs = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
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
    warps = {"num_warps": options["num_warps"]}
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=warps)
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


def measure(archs: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> list[dict[str, Any]]:
    """One row per kernel, configuration, dtype and architecture."""
    rows = []
    for dtype in dtypes:
        for case, kernel, args, options in launches(dtype):
            for arch in archs:
                row = {"kernel": kernel.fn.__name__.strip("_"), "case": case}
                row |= {"dtype": str(dtype).removeprefix("torch."), "arch": arch}
                rows.append(row | compile_kernel(kernel, args, options, arch))
    return rows


def key(row: dict[str, Any]) -> str:
    """What a row is about, without its architecture and figures."""
    return f"{row['kernel']}, {row['case']}, {row['dtype']}"


def registers(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Registers per thread by kernel and configuration, then by architecture."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(key(row), {})[f"sm_{row['arch']}"] = row["registers"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.resources")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHS)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bfloat16"])
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    parser.add_argument("--write", action="store_true", help=f"store them in {TABLE.name}")
    args = parser.parse_args()
    rows = measure(tuple(args.arch), tuple(DTYPES[name] for name in args.dtype))
    table = registers(rows)
    for name, counts in table.items():
        print(f"{name:60}", *(f"{arch} {count:3}" for arch, count in counts.items()))
    if args.out:
        args.out.write_text(json.dumps(rows) + "\n")
    if args.write:
        table = {"triton": triton.__version__, "registers": table}
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
