"""Recorded figures in one form, whichever bench wrote the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any

from bench.probes.convs import LAYERS, PASSES, Layer
from fastcyclegan.errors import UserError

BF16_BYTES = 2
BENCH_SCHEMA = "fastcyclegan/bench/1"
SUITE_SCHEMA = "fastcyclegan/suite/1"
# Quartiles of fewer rounds say nothing about the noise.
FEW_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing: median, and the range of the middle samples where it is recorded."""

    median: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _require_numbers(self.median, self.low, self.high)
        if self.median <= 0:
            raise ValueError(f"a time of {self.median} s")


def _require_numbers(*values: object) -> None:
    """Raise ValueError if one is neither None nor a finite number."""
    for value in values:
        if value is not None and not (isinstance(value, int | float) and isfinite(value)):
            raise ValueError(f"{value!r} is no number")


@dataclass(frozen=True)
class OpTiming:
    """One op, case, provider and mode; ``flops`` is counted, ``bytes`` what must be moved.

    ``cold``: seconds with nothing of the inputs in the L2 cache of a GPU, where that is recorded.
    """

    op: str
    case: str
    provider: str
    mode: str
    time: Timing
    bytes: float
    flops: float
    of_copy: float | None = None
    cold: float | None = None

    def __post_init__(self) -> None:
        _require_numbers(self.bytes, self.flops, self.of_copy, self.cold)


@dataclass
class Recorded:
    """What one file holds.

    Attributes:
        machine: as the bench noted it.
        ladders: by group, the rows of a ladder by name, in order.
        ops: of the op benches and of convolutions.
        others: any other timings by name.
        copy_GB_per_s, matmul_TFLOP_per_s: ceilings that were measured in the same run.
        steps: what the suite found of each row of a ladder, by group and name.
        trainings: what ``bench.quality`` compares.
    """

    path: Path
    machine: dict[str, Any]
    ladders: dict[str, dict[str, Timing]] = field(default_factory=dict)
    ops: list[OpTiming] = field(default_factory=list)
    others: dict[str, Timing] = field(default_factory=dict)
    copy_GB_per_s: float | None = None
    matmul_TFLOP_per_s: float | None = None
    steps: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    trainings: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require_numbers(self.copy_GB_per_s, self.matmul_TFLOP_per_s)
        if not isinstance(self.machine, dict):
            raise ValueError(f"the machine {self.machine!r} is no JSON object")

    @property
    def title(self) -> str:
        """Machine, torch and commit."""
        machine = self.machine
        where = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('cores', '?')} cores"
        told = re.findall(
            r"\b[0-9a-f]{7,40}\b", str(machine.get("commit") or machine.get("source"))
        )
        commit = " and ".join(word[:7] for word in told) or "not recorded"
        torch = re.sub(r"[+]cpu$", " (CPU build)", str(machine.get("torch")))
        return f"{where}, torch {torch}, commit {commit}, {machine.get('date')}"

    def timings(self) -> dict[str, Timing]:
        """Everything by a name of its own."""
        steps = {f"{g}: {n}": t for g, rows in self.ladders.items() for n, t in rows.items()}
        ops = {f"{o.op} {o.case} {o.provider} {o.mode}": o.time for o in self.ops}
        return steps | ops | self.others


def load(path: Path, rehearsal: bool = False) -> Recorded:
    """The figures of one JSON file; those of a rehearsal only where that is asked for.

    Raises:
        UserError: a bench did not write it, or only rehearsed.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: cannot be read ({problem})") from None
    if isinstance(found, dict) and found.get("rehearsal") and not rehearsal:
        raise UserError(f"{path}: a rehearsal on a CPU, no figures of a GPU; remove it")
    reader = _reader(found)
    if reader is None:
        raise UserError(f"{path}: not the results of a bench, or of another schema")
    try:
        return reader(path, found)
    except KeyError as problem:
        raise UserError(f"{path}: results of another schema ({problem!r} is missing)") from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as problem:
        raise UserError(f"{path}: results of another schema ({problem!r})") from None


def _reader(found: Any) -> Callable[[Path, dict], Recorded] | None:
    if not isinstance(found, dict):
        return None
    if found.get("schema") == SUITE_SCHEMA:
        return _from_suite
    if "machine_info" in found and "benchmarks" in found:
        return _from_pytest
    if "op" in found and "rows" in found:
        return _from_op
    if "machine" in found and "rows" in found:
        return _from_ladder
    if isinstance(found.get("machine"), dict) and "probes_sha256" in found["machine"]:
        return _from_probes
    return None


def _from_ladder(path: Path, found: dict) -> Recorded:
    recorded = Recorded(path, found["machine"])
    for row in found["rows"]:
        if "group" in row:
            rows = recorded.ladders.setdefault(row["group"], {})
            rows[row["name"]] = Timing(row["interleaved_median_seconds"])
        elif "img_per_s" in row:
            recorded.others[row["name"]] = Timing(1 / row["img_per_s"])
        else:
            name = "seconds" if "seconds" in row else "cpu_seconds"
            recorded.others[row["name"]] = Timing(row[name])
    return recorded


def _spread(us: dict[str, float]) -> Timing:
    return Timing(us["median"] / 1e6, us["p10"] / 1e6, us["p90"] / 1e6)


def _from_op(path: Path, found: dict) -> Recorded:
    recorded = Recorded(path, found["machine"], copy_GB_per_s=found["copy_GB_per_s"])
    recorded.ops = [_op(found["op"], row) for row in found["rows"] if "us" in row]
    return recorded


def _op(name: str, row: dict[str, Any]) -> OpTiming:
    key = row["case"], row["provider"], row["mode"]
    flops = norm_flops(row["case"], row["mode"]) if name.endswith("_norm") else 0.0
    cold = row["cold_us"]["median"] / 1e6 if "cold_us" in row else None
    figures = row["counted_bytes"], flops, row["of_copy"], cold
    return OpTiming(name, *key, _spread(row["us"]), *figures)


def norm_flops(case: str, mode: str) -> float:
    """By value of x: 7 forward (mean, deviation, scale, ReLU), 12 backward (two sums, dx)."""
    count = prod(int(n) for n in case.partition("-")[0].split("x"))
    return count * {"fwd": 7, "bwd": 12, "fwd_bwd": 19}[mode]


def _from_probes(path: Path, found: dict) -> Recorded:
    """Any of the probes: those that have not run, were skipped or have failed have no figures."""
    ceilings = found.get("ceilings", {})
    recorded = Recorded(
        path,
        found["machine"],
        copy_GB_per_s=ceilings.get("copy_GB_per_s", {}).get("median"),
        matmul_TFLOP_per_s=ceilings.get("matmul_TFLOP_per_s", {}).get("median"),
    )
    layers = {layer.name: layer for layer in LAYERS}
    sections = [found.get(name, {}) for name in ("convs_first", "convs_rest")]
    for row in (row for section in sections for row in section.get("rows", ())):
        if row["layer"] in layers and row.get("layout") == "channels_last":
            count = conv_bytes(layers[row["layer"]], row["N"])
            recorded.ops += [
                OpTiming(
                    "convolution",
                    f"{row['layer']} N {row['N']}",
                    "cuDNN",
                    mode,
                    _spread(row[mode]["us"]),
                    count,
                    row["GFLOP"] * 1e9,
                )
                for mode in PASSES
                if mode in row and "us" in row[mode]
            ]
    return recorded


def conv_bytes(layer: Layer, batch: int) -> int:
    """Input, weight and output once each, in bf16."""
    image = layer.in_channels * prod(layer.size) + layer.out_channels * prod(layer.out_size())
    return BF16_BYTES * (
        batch * image + layer.in_channels * layer.out_channels * prod(layer.kernel)
    )


def _from_pytest(path: Path, found: dict) -> Recorded:
    if found["machine_info"].get("schema") != BENCH_SCHEMA:
        raise KeyError(f"machine_info.schema {BENCH_SCHEMA}")
    machine = found["machine_info"]["fastcyclegan"]
    matmul = machine["matmul_TFLOP_per_s"]["bfloat16"]
    recorded = Recorded(path, machine, {}, [], {}, machine["copy_GB_per_s"], matmul)
    recorded.ladders, recorded.ops, recorded.others = from_benchmarks(found["benchmarks"])
    return recorded


def from_benchmarks(
    benchmarks: Iterable[dict],
) -> tuple[dict[str, dict[str, Timing]], list[OpTiming], dict[str, Timing]]:
    """Ladders, ops and others of what pytest-benchmark has recorded."""
    ladders: dict[str, dict[str, Timing]] = {}
    ops, others = [], {}
    for bench in benchmarks:
        group, info, stats = bench["group"] or "", bench["extra_info"], bench["stats"]
        name = bench["param"] or bench["name"]
        if "interleaved_median_seconds" in info:
            rounds = info.get("interleaved_seconds", {})
            time = info["interleaved_median_seconds"], rounds.get("p10"), rounds.get("p90")
            ladders.setdefault(group, {})[name] = Timing(*time)
        elif group.startswith("op, "):
            _, op, mode, case, _ = group.split(", ")
            provider = name.removeprefix(f"{case}-").removesuffix(f"-{mode}")
            row = info | {"case": case, "provider": provider, "mode": mode}
            ops.append(_op(op, row))
        else:
            others[f"{group}: {name}"] = _once_or_more(info, stats)
    return ladders, ops, others


def _once_or_more(info: dict[str, Any], stats: dict[str, Any]) -> Timing:
    """What it says of itself; else of its rounds. Where it ran once, an image's share of that."""
    if one := info.get("seconds_of_one"):
        return Timing(one["median"], one["p10"], one["p90"])
    if stats["rounds"] >= FEW_ROUNDS:
        return Timing(stats["median"], stats["q1"], stats["q3"])
    return Timing(1 / info["img_per_s"] if "img_per_s" in info else stats["median"])


def _from_suite(path: Path, found: dict) -> Recorded:
    recorded = Recorded(path, found["machine"])
    results = [case["result"] for case in found["cases"].values()]
    for result in results:
        if "ms" in result:
            group, row, ms = result["group"], result["row"], result["ms"]
            time = Timing(ms["median"] / 1e3, ms["p10"] / 1e3, ms["p90"] / 1e3)
            recorded.ladders.setdefault(group, {})[row] = time
            recorded.steps[group, row] = result
        if "way" in result:
            recorded.trainings.append(result)
        if "benchmarks" in result:
            machine = result["machine"]
            recorded.copy_GB_per_s = machine["copy_GB_per_s"]
            recorded.matmul_TFLOP_per_s = machine["matmul_TFLOP_per_s"]["bfloat16"]
            _, ops, others = from_benchmarks(result["benchmarks"])
            recorded.ops += ops
            recorded.others |= others
        if "matmul_TFLOP_per_s" in result and "said" in result:
            recorded.matmul_TFLOP_per_s = result["matmul_TFLOP_per_s"]
    return recorded
