"""The page: what is known of a run, or of several, put into the template."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from time import localtime, strftime
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastcyclegan.files import write_atomic
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.report import charts, facts
from fastcyclegan.runs.report.catalogue import families
from fastcyclegan.runs.report.charts import Chart, Line
from fastcyclegan.runs.report.history import History, shortened
from fastcyclegan.runs.report.pictures import MAX_PICTURES, Pictures
from fastcyclegan.runs.report.thinning import MAX_POINTS
from fastcyclegan.version import __version__

MAX_BYTES = 10_000_000
_HERE = Path(__file__).parent


class RunPage:
    """What is shown of one run; kept between two writings, so that each reads only what is new."""

    def __init__(
        self, folder: RunFolder, pictures: int = MAX_PICTURES, points: int = MAX_POINTS
    ) -> None:
        """``pictures``: how many previews it may have; ``points``: each curve, an even number."""
        self.folder = folder
        self.name = shortened(folder.root.resolve().name, 80)
        self.history = History(folder.metrics, points)
        self.pictures = Pictures(folder.previews, pictures)
        self.config: dict[str, Any] = {}
        self.quarantine = facts.quarantine_of(folder.quarantine)

    def refresh(self, last_step: int | None = None) -> None:
        """Read what is new; ``last_step``: leave out previews of later ones.

        Raises UserError when the folder is no run's, OSError.
        """
        self.config = self.folder.read_config()
        self.history.refresh()
        self.pictures.refresh(last_step)

    def charts(self) -> list[Chart]:
        """Every quantity of the metrics, those of eval rows first."""
        history, found = self.history, []
        for i, (evaluated, family, drawn) in enumerate(families(history.train, history.evals)):
            curves = history.evals if evaluated else history.train
            lines = [Line(d.name, curves[d.name].points, d.hue, d.dash) for d in drawn]
            found.append(charts.draw(f"chart-{i}", family, lines, history.last_step))
        return [chart for chart in found if chart]

    def html(self) -> str:
        """The page."""
        drawn, pictures = self.charts(), self.pictures.shown
        return render(
            "run.html",
            title=self.name,
            lead=facts.lead_of(self.config),
            page=self,
            charts=drawn,
            data=page_data(drawn, [p.step for p in pictures], self.history.last_step),
            progress=facts.progress_of(self.config, self.history),
            tiles=facts.tiles_of(self.config, self.history),
            options=facts.options_of(self.config),
            machine=facts.machine_of(self.config),
            checkpoints=facts.checkpoints_of(self.folder),
        )

    def write(self) -> Path:
        """Put the page into the run folder; readers see the old one or the new one.

        Raises OSError.
        """
        write_atomic(self.folder.report, self.html().encode())
        return self.folder.report


def page_data(drawn: Sequence[Chart], steps: Sequence[int], last: int) -> dict[str, Any]:
    """What the page's script needs to know."""
    place = {"left": charts.LEFT, "right": charts.RIGHT, "top": charts.TOP}
    place |= {"bottom": charts.BOTTOM, "width": charts.WIDTH}
    curves = {chart.key: chart.data for chart in drawn}
    return {"steps": list(steps), "last": max(last, 1), "geometry": place, "charts": curves}


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> tuple[str, str]:
    """A file of ours that the page has inside, and its hash for the page's security policy."""
    text = (_HERE / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return text, f"'sha256-{digest}'"


def render(template: str, **values: Any) -> str:
    """A page: ``template`` with ``values``, our styles and our script."""
    (style, style_hash), (script, script_hash) = _asset("page.css"), _asset("page.js")
    # Nothing is fetched and no other script runs, whatever the data may hold.
    policy = (
        f"default-src 'none'; img-src data:; style-src {style_hash}; script-src {script_hash}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            style=style,
            script=script,
            policy=policy,
            geometry=charts,
            written=strftime("%Y-%m-%d %H:%M:%S %Z", localtime()),
            version=__version__,
            **values,
        )
    )
