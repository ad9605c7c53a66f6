"""Pictures of recorded figures: the waterfall of a ladder, roofline of the ops, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.recorded import OpTiming, Recorded
from fastcyclegan.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN, RED, BLUE, GREY = "#2a7f3f", "#b03030", "#20609f", "#888888"
MARKS = {"triton": ("o", BLUE), "compile": ("s", "#d07000"), "native": ("v", RED)}
MARKS |= {"ref": ("x", GREY), "cuDNN": ("^", GREEN)}


def pyplot() -> Any:
    """matplotlib, drawing into files. Raises UserError where it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise UserError(
            'matplotlib is not installed: pip install -e ".[plot]", or --no_plots'
        ) from None
    return plt


def waterfall(recorded: Recorded, path: Path) -> None:
    """One panel per ladder: each bar leads from the time of the row above it to its own.

    Behind the first row, what the others are compared with, these come in the order of their times;
    of a GPU in their own order, as there a row adds something to the one above it.
    """
    plt = pyplot()
    count = len(recorded.ladders)
    longest = max(len(rows) for rows in recorded.ladders.values())
    height = 0.9 + count * (0.7 + 0.34 * longest)
    figure, panels = plt.subplots(count, 1, figsize=(8.6, height), layout="constrained")
    for axes, (group, rows) in zip(
        [panels] if count == 1 else panels, recorded.ladders.items(), strict=True
    ):
        first, *others = ((name, time.median) for name, time in rows.items())
        if not recorded.machine.get("gpu"):
            others.sort(key=lambda row: -row[1])
        _steps(axes, group, dict([first, *others]))
    figure.suptitle(f"One training step on {recorded.title}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _steps(axes: Axes, group: str, seconds: dict[str, float]) -> None:
    times = list(seconds.values())
    unit, scale = ("ms", 1e3) if max(times) < 0.1 else ("s", 1.0)
    before = [times[0], *times[:-1]]
    for place, (now, then) in enumerate(zip(times, before, strict=True)):
        if place == 0:
            axes.barh(place, now * scale, color=GREY)
        else:
            colour = GREEN if now <= then else RED
            axes.barh(place, now * scale, color=colour, alpha=0.25)
            axes.barh(place, abs(then - now) * scale, left=min(then, now) * scale, color=colour)
        text = f" {now * scale:#.3g} {unit}, {times[0] / now:.2f}x"
        axes.text(max(now, then) * scale, place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(times)), list(seconds), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(times) * scale)
    axes.set_xlabel(f"{unit} per step", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(group, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def curves(
    xs: Sequence[int], ys: Mapping[str, Sequence[float | None]], label: str, path: Path
) -> None:
    """Losses over ``xs``: a panel for each kind, which is what its name has before the ``_``."""
    plt = pyplot()
    kinds = list(dict.fromkeys(name.partition("_")[0] for name in ys))
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(3.4 * len(kinds), 3.0), layout="constrained", squeeze=False
    )
    for axes, kind in zip(panels[0], kinds, strict=True):
        for name, values in ys.items():
            if name.partition("_")[0] == kind:
                axes.plot(xs, [float("nan") if y is None else y for y in values], lw=1, label=name)
        axes.set_xlabel(label, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def roofline(
    title: str, ops: Sequence[OpTiming], copy_GB_per_s: float, matmul: float | None, path: Path
) -> None:
    """Counted FLOP/s over FLOP per byte, below what a copy and a matrix product reach."""
    plt = pyplot()
    unit, scale = ("T", 1e12) if copy_GB_per_s >= 100 else ("G", 1e9)
    copy = copy_GB_per_s * 1e9 / scale
    peak = matmul and matmul * 1e12 / scale
    figure, axes = plt.subplots(figsize=(8.6, 5.4), layout="constrained")
    drawn = [op for op in ops if op.flops]
    for provider, (mark, colour) in MARKS.items():
        points = [op for op in drawn if op.provider == provider]
        if points:
            xs = [op.flops / op.bytes for op in points]
            ys = [op.flops / op.time.median / scale for op in points]
            label = "convolutions, cuDNN" if provider == "cuDNN" else f"norms, {provider}"
            axes.scatter(xs, ys, s=18, marker=mark, color=colour, alpha=0.6, label=label)
    lowest, highest = (f(op.flops / op.bytes for op in drawn) for f in (min, max))
    edges = [lowest / 2, highest * 2]
    corner = peak / copy if peak else edges[1]
    slope = [edges[0], min(corner, edges[1])]
    told = f"copy: {copy:.3g} {unit}B/s"
    axes.plot(slope, [x * copy for x in slope], color="black", lw=1.2, label=told)
    if peak and corner < edges[1]:
        told = f"matmul bf16: {peak:.3g} {unit}FLOP/s"
        axes.plot([corner, edges[1]], [peak, peak], color="black", lw=1.2, ls="--", label=told)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte that must be moved (norms: 7 forward, 12 backward per value)")
    axes.set_ylabel(f"{unit}FLOP/s, counted")
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
