"""Several runs on one page: the same quantities in one chart, what differs in one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.report import charts, facts
from fastcyclegan.runs.report.catalogue import families
from fastcyclegan.runs.report.charts import Chart, Line
from fastcyclegan.runs.report.history import shortened
from fastcyclegan.runs.report.page import RunPage, page_data, render
from fastcyclegan.runs.report.thinning import MAX_POINTS

# Eight colours with two kinds of line.
MAX_RUNS = 16
_PICTURES = 32


@dataclass(frozen=True)
class Compared:
    """One of the runs, for the template: its page, its label, its colour and kind of line."""

    page: RunPage
    label: str
    hue: int
    dash: int


def compare(roots: Sequence[Path]) -> str:
    """The page that compares the runs in the folders ``roots``.

    Raises UserError when one of them is no run's, OSError.
    """
    # All together take about as much room as one run does alone.
    pictures, points = max(2, _PICTURES // len(roots)), 2 * (MAX_POINTS // len(roots))
    pages = [RunPage(RunFolder(root), pictures, points) for root in roots]
    for page in pages:
        page.refresh()
    names = [page.name for page in pages]
    labels = [
        name if names.count(name) == 1 else shortened(root, 80)
        for name, root in zip(names, roots, strict=True)
    ]
    runs = [
        Compared(page, label, i % 8, i // 8)
        for i, (page, label) in enumerate(zip(pages, labels, strict=True))
    ]
    drawn, last = _charts(runs), max(page.history.last_step for page in pages)
    steps = sorted({picture.step for page in pages for picture in page.pictures.shown})
    return render(
        "comparison.html",
        title=" / ".join(labels),
        runs=runs,
        charts=drawn,
        data=page_data(drawn, steps, last),
        steps=steps,
        crowded=any(page.history.crowded for page in pages),
        reached=_rows(runs, _reached),
        options=_differing(_rows(runs, lambda page: facts.table(page.config.get("train")))),
        machine=_differing(_rows(runs, lambda page: facts.machine_of(page.config))),
    )


def _charts(runs: Sequence[Compared]) -> list[Chart]:
    histories = [run.page.history for run in runs]
    trained = list(dict.fromkeys(name for h in histories for name in h.train))
    evaluated = list(dict.fromkeys(name for h in histories for name in h.evals))
    last, found = max(h.last_step for h in histories), []
    for of_evals, family, drawn in families(trained, evaluated):
        for name in (d.name for d in drawn):
            lines = []
            for run in runs:
                curves = run.page.history.evals if of_evals else run.page.history.train
                if name in curves:
                    lines.append(Line(run.label, curves[name].points, run.hue, run.dash))
            # What is one number in all runs, a baseline say, tells nothing about their difference.
            if len({p.mean for line in lines for p in line.points}) > 1:
                found.append(charts.draw(f"chart-{len(found)}", family, lines, last, name))
    return [chart for chart in found if chart]


def _reached(page: RunPage) -> dict[str, str]:
    progress = facts.progress_of(page.config, page.history)[0]
    return {"state": progress} | dict(facts.tiles_of(page.config, page.history))


def _rows(
    runs: Sequence[Compared], told: Callable[[RunPage], Mapping[str, str]]
) -> list[tuple[str, list[str]]]:
    """What is told of each run, side by side; "" where a run has no such entry."""
    columns = [told(run.page) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def _differing(rows: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    return [row for row in rows if len(set(row[1])) > 1]
