"""python -m fastcyclegan.report: the page of a run written anew, or one that compares runs.

The page is one HTML file that needs nothing else. torch is imported after the options are read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastcyclegan import command
from fastcyclegan.config import ReportConfig
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable, write_atomic
from fastcyclegan.options import parse

if TYPE_CHECKING:
    from fastcyclegan.runs.folder import RunFolder


def main(argv: Sequence[str]) -> int:
    """Run the command with the words ``argv`` and return its exit code. Raises UserError."""
    config = parse(
        ReportConfig,
        "python -m fastcyclegan.report",
        "Write the page of a run, report.html, or compare several runs on one page.",
        argv,
    )
    from fastcyclegan.runs.folder import RunFolder
    from fastcyclegan.runs.report.comparison import MAX_RUNS

    roots = [Path(word) for word in config.run]
    if len(roots) > MAX_RUNS:
        raise UserError(f"{len(roots)} runs: at most {MAX_RUNS} can be compared on one page")
    for root in roots:
        _check_run(RunFolder(root))
    output = _output(config, roots)
    _write(output, _html(roots))
    print(f"wrote {printable(output)}")
    return command.DONE


def _check_run(folder: RunFolder) -> None:
    if not folder.config.is_file():
        raise UserError(f"{printable(folder.root)} is no run folder: it has no config.json")
    try:
        folder.read_config()
    except UserError:
        raise UserError(f"{printable(folder.config)} cannot be read: no report of it") from None


def _output(config: ReportConfig, roots: Sequence[Path]) -> Path:
    """Where to write; raises UserError if that is not to be replaced."""
    if config.output is None and len(roots) == 1:
        return roots[0] / "report.html"
    output = Path(config.output or "comparison.html")
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {printable(output)}: give it the suffix .html")
    if not output.parent.is_dir():
        raise UserError(f"--output {printable(output)}: there is no folder {output.parent}")
    if output.is_dir() or (output.exists() and not config.overwrite):
        raise UserError(f"{printable(output)} exists: --overwrite replaces it")
    return output


def _html(roots: Sequence[Path]) -> str:
    from fastcyclegan.runs.folder import RunFolder
    from fastcyclegan.runs.report.comparison import compare
    from fastcyclegan.runs.report.page import RunPage

    try:
        if len(roots) > 1:
            return compare(roots)
        page = RunPage(RunFolder(roots[0]))
        page.refresh()
        return page.html()
    except OSError as problem:
        name = printable(problem.filename or roots[0])
        raise UserError(f"{name} cannot be read: {problem.strerror}") from None


def _write(output: Path, html: str) -> None:
    try:
        write_atomic(output, html.encode())
    except OSError as problem:
        raise UserError(f"{printable(output)} cannot be written: {problem.strerror}") from None


if __name__ == "__main__":
    sys.exit(command.run(main))
