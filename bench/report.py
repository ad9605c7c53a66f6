"""Pictures and README's tables of what is recorded, or two recordings compared.

    python -m bench.report [--results DIR] [--readme FILE] [--no_plots]
    python -m bench.report --compare A.json B.json

The first reads every folder of DIR, draws its ladders and roofline.png into it, and writes tables
between README's markers: those of a folder, and the ladders that ``bench.gpu_suite`` has recorded,
of all GPUs. The second prints what became faster or slower by more than the noise, from A to B.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import plots, quality_scores
from bench.recorded import OpTiming, Recorded, Timing, load
from fastcyclegan import command
from fastcyclegan.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# What the same code differs by from run to run, which the spread within a run does not show. Two
# starts of an H200: two convolutions in three by less than 3 %. On two shared CPU cores medians of
# interleaved rounds: by 5 %.
GPU_NOISE, CPU_NOISE = 0.03, 0.05
PROVIDERS = ("triton", "compile", "ref", "native")
# In the place of a ladder of the suite, as long as there is none.
NOT_MEASURED = {
    "ladder": "The whole step as it is now has not been measured on a GPU yet; its table comes\n"
    "here: `python -m bench.gpu_suite --out DIR --part ladder`.",
    "dcgan": "DCGAN has not been measured on a GPU yet: `--part dcgan` of the same command.",
    "quality": "What the fast path learns on a GPU has not been measured yet: `python -m "
    "bench.gpu_suite --out DIR\n--part quality`.",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help lists the options")


def main(argv: Sequence[str]) -> int:
    parser = _Parser(prog="python -m bench.report", allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--no_plots", action="store_true", help="tables alone, without matplotlib")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"))
    args = parser.parse_args(argv)
    if args.compare:
        for line in compare(*(load(path) for path in args.compare)):
            print(line)
        return command.DONE
    if not args.results.is_dir():
        raise UserError(f"--results {args.results}: no such folder")
    if not args.readme.is_file():
        raise UserError(f"--readme {args.readme}: no such file")
    text, on_gpus = args.readme.read_text(encoding="utf-8"), []
    for folder in sorted(path for path in args.results.iterdir() if path.is_dir()):
        recordings = [load(path) for path in sorted(folder.glob("*.json"))]
        if not args.no_plots:
            draw(folder, recordings)
        for name, table in tables(recordings):
            text = put(text, f"{folder.name} {name}", table)
        on_gpus += [r for r in recordings if r.steps or (r.trainings and r.machine.get("gpu"))]
    for name, otherwise in NOT_MEASURED.items():
        found = [gpu_table(r) for r in on_gpus if r.path.stem == name]
        text = put(text, f"gpu {name}", "\n\n".join(found) or otherwise)
    args.readme.write_text(text, encoding="utf-8")
    return command.DONE


def draw(folder: Path, recordings: Sequence[Recorded]) -> None:
    """The ladders and the roofline of one machine, as far as there are figures for them."""
    for recorded in recordings:
        if recorded.ladders:
            path = folder / f"{recorded.path.stem}.png"
            plots.waterfall(recorded, path)
            print(f"wrote {path}")
    ops = _once(recordings)
    measured = [r for r in recordings if any(op in r.ops for op in ops)]
    copies = [r.copy_GB_per_s for r in measured if r.copy_GB_per_s]
    products = [r.matmul_TFLOP_per_s for r in measured if r.matmul_TFLOP_per_s]
    if any(op.flops for op in ops) and copies:
        title = "\n".join(f"{r.path.name}: {r.title}" for r in measured)
        path = folder / "roofline.png"
        plots.roofline(title, ops, max(copies), max(products, default=None), path)
        print(f"wrote {path}")


def _once(recordings: Sequence[Recorded]) -> list[OpTiming]:
    """The timings of ops; of one that several files have, that of the first."""
    found: dict[tuple, OpTiming] = {}
    for recorded in recordings:
        for op in recorded.ops:
            found.setdefault((op.op, op.case, op.provider, op.mode), op)
    return list(found.values())


def tables(recordings: Sequence[Recorded]) -> Iterator[tuple[str, str]]:
    """(name, Markdown) of each table that can be made of the recordings of one machine."""
    for recorded in recordings:
        if recorded.ladders:
            yield recorded.path.stem, ladder_table(recorded)
        if recorded.trainings:
            yield recorded.path.stem, quality_scores.table(recorded.trainings, recorded.title)
    ops = [op for op in _once(recordings) if op.op != "convolution"]
    if ops:
        yield "ops", op_table(ops)


def ladder_table(recorded: Recorded) -> str:
    """One row per way to do the step, one column per size: seconds, and how many times faster."""
    groups = list(recorded.ladders)
    names = list(dict.fromkeys(name for rows in recorded.ladders.values() for name in rows))
    heads = [group.removeprefix("step, ").rpartition(", ")[0] for group in groups]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(groups)) + "|"]
    for name in names:
        cells = [_step_cell(recorded.ladders[group], name, names[0]) for group in groups]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{recorded.title}."])


def gpu_table(recorded: Recorded) -> str:
    """One row per way to do the step: ms and speed by batch, and what else the smallest takes.

    Of trainings, what they have learnt.
    """
    if recorded.trainings:
        return quality_scores.table(recorded.trainings, recorded.title)
    batches = {int(re.search(r", batch (\d+),", g)[1]): g for g in recorded.ladders}
    smallest, groups = min(batches), [batches[size] for size in sorted(batches)]
    names = list(dict.fromkeys(name for rows in recorded.ladders.values() for name in rows))
    heads = [f"batch {size}" for size in sorted(batches)] + ["kernels", "host", "memory"]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in names:
        cells = [_step_cell(recorded.ladders[group], name, names[0]) for group in groups]
        cells += _taken(recorded.steps.get((batches[smallest], name)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    size = groups[0].partition(", batch")[0]
    told = f"One {size}; kernels, time of the host and memory are those of batch {smallest}."
    return "\n".join([*lines, "", f"{told} {recorded.title}."])


def _taken(step: dict[str, Any] | None) -> list[str]:
    if step is None:
        return ["", "", ""]
    host = f"{step['host_ms']['median']:#.3g} ms"
    return [f"{step['kernels']:.0f}", host, f"{step['peak_GiB']:.2f} GiB"]


def _step_cell(rows: dict[str, Timing], name: str, first: str) -> str:
    """The time of a row, and how many times faster than ``first`` it is, if that is there."""
    if name not in rows:
        return ""
    seconds = rows[name].median
    shown = f"{seconds:#.3g} s" if seconds >= 0.1 else f"{seconds * 1e3:#.3g} ms"
    return f"{shown}, {rows[first].median / seconds:.2f}x" if first in rows else shown


def op_table(ops: Sequence[OpTiming]) -> str:
    """One row per case, forward and backward together: us of every provider, share of a copy.

    Where it is recorded, also what the first provider takes with nothing in the L2 cache.
    """
    by_key = {(op.op, op.case, op.provider): op for op in ops if op.mode in ("fwd_bwd", "fwd")}
    whole = {(op.op, op.case, op.provider): op for op in ops if op.mode == "fwd_bwd"}
    by_key |= whole
    present = [p for p in PROVIDERS if any(key[2] == p for key in by_key)]
    heads = [*present, "of a copy"]
    heads += (
        [f"{present[0]}, cold L2"] if any(op.cold is not None for op in by_key.values()) else []
    )
    lines = [f"| us | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for op, case in dict.fromkeys(key[:2] for key in by_key):
        found = [by_key.get((op, case, provider)) for provider in present]
        cells = [f"{f.time.median * 1e6:.3g}" if f else "" for f in found]
        share = next((f.of_copy for f in found if f and f.of_copy is not None), None)
        cells.append(f"{share:.0%}" if share is not None else "")
        if len(heads) > len(cells):
            cold = found[0].cold if found[0] else None
            cells.append(f"{cold * 1e6:.3g}" if cold is not None else "")
        lines.append(f"| {op} {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def put(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the markers of ``name``, where it has them."""
    begin, end = f"<!-- bench {name} -->", "<!-- end -->"
    pattern = re.compile(rf"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if begin in text and not pattern.search(text):
        raise UserError(f"README: the marker {begin} has no {end} behind it")
    return pattern.sub(lambda match: f"{begin}\n{table}\n{end}", text)


def compare(a: Recorded, b: Recorded) -> Iterator[str]:
    """What changed from ``a`` to ``b`` by more than the noise, the largest change first.

    Raises:
        UserError: the two have nothing in common, or only one of them is of a GPU.
    """
    on_gpu = bool(a.machine.get("gpu"))
    if on_gpu != bool(b.machine.get("gpu")):
        where = (a.path, b.path) if on_gpu else (b.path, a.path)
        raise UserError("{} is of a GPU, {} of a CPU: nothing in them compares".format(*where))
    noise = GPU_NOISE if on_gpu else CPU_NOISE
    old, new = a.timings(), b.timings()
    common = [name for name in old if name in new]
    if not common:
        raise UserError(f"{a.path} and {b.path} have no row in common")
    yield f"A: {a.title}"
    yield f"B: {b.title}"
    for part in ("gpu", "cpu", "torch"):
        was, now = a.machine.get(part), b.machine.get(part)
        if was != now:
            yield f"warning: not the same {part}: {was} in A, {now} in B"
    changed = [name for name in common if beyond_noise(old[name], new[name], noise)]
    for name in sorted(changed, key=lambda n: -abs(new[n].median / old[n].median - 1)):
        before, after = old[name].median, new[name].median
        word = "faster" if after < before else "slower"
        ratio = max(before, after) / min(before, after)
        yield f"{ratio:.2f}x {word}  {name}: {_time(before)} -> {_time(after)}"
    within = len(common) - len(changed)
    told = f"within the noise ({noise:.0%}, or ranges that meet)"
    yield f"{len(changed)} of {len(common)} changed, {within} {told}"
    for letter, names in (("A", old.keys() - new.keys()), ("B", new.keys() - old.keys())):
        if names:
            yield f"only in {letter}: {len(names)}, such as {min(names)}"


def beyond_noise(a: Timing, b: Timing, noise: float) -> bool:
    """Whether the medians differ by more than ``noise``, and the middle samples do not meet."""
    if max(a.median, b.median) / min(a.median, b.median) <= 1 + noise:
        return False
    return None in (a.low, a.high, b.low, b.high) or a.high < b.low or b.high < a.low


def _time(seconds: float) -> str:
    return f"{seconds:#.3g} s" if seconds >= 0.1 else f"{seconds * 1e6:#.4g} us"


if __name__ == "__main__":
    sys.exit(command.run(main))
