"""Commands that a case runs: pytest with its counts, and our own commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gpu_suite.cases import ROOT, Result

TEXT, SHOWN = 1500, 25
# Of a training.
PREVIEWS = 4


def python(
    words: Sequence[str], environment: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """``python WORDS`` in the repository, behind the words ``before``; whatever its exit code."""
    given = with_ours() | dict(environment or {})
    command = [*before, sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)


def with_ours() -> dict[str, str]:
    """The environment, in which the packages of this repository are found from any folder."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    # options that are meant for the pytest around this one are not for the ones begun here
    around = {"PYTEST_ADDOPTS": ""}
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | around


def run_pytest(
    words: Sequence[str], environment: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> Result:
    """Counts by outcome, and the text of each failure.

    Raises:
        RuntimeError: pytest came to no end, or was told something that it does not know.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        told = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *words]
        done = python(told, environment, before)
        if not report.is_file():
            said = (done.stdout + done.stderr).strip()[-TEXT:]
            raise RuntimeError(f"pytest ended with exit code {done.returncode}\n{said}")
        result = counted(report.read_text(encoding="utf-8"))
    if done.returncode not in (0, 5) and not result["failures"]:  # 5: there was no test
        said = (done.stdout + done.stderr)[-TEXT:]
        result["failures"] = [{"test": f"exit code {done.returncode}", "text": said}]
    return result


def counted(xml: str) -> Result:
    """What a junit report says: tests by outcome, and the failures with the end of their text."""
    result: Result = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    for case in ET.fromstring(xml).iter("testcase"):
        wrong = [node for kind in ("failure", "error") for node in case.findall(kind)]
        skipped = case.find("skipped") is not None
        result["failed" if wrong else "skipped" if skipped else "passed"] += 1
        name = f"{case.get('classname')}::{case.get('name')}"
        result["failures"] += [{"test": name, "text": (x.text or "")[-TEXT:]} for x in wrong]
    result["failures"] = result["failures"][:SHOWN]
    return result


def run_training(
    recipe: Sequence[str],
    steps: int,
    folder: Path,
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """The run folder of a training of ``steps``, told to stop after ``limit`` seconds.

    Args:
        recipe: words for the train command.
        folder: is made, and all that the command writes is in there.

    Raises:
        RuntimeError: it ended in another way.
    """
    folder.mkdir()
    words = ["-m", "fastcyclegan.train", *recipe, "--steps", str(steps), "--fit_schedule"]
    words += ["--name", "run", "--resume", "none", "--keep", "1", "--milestone_epochs", "0"]
    words += ["--display_freq", str(max(1, steps // PREVIEWS))]
    words += ["--save_every_steps", str(steps)]
    given = with_ours() | dict(environment or {})
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=given, stdout=log, stderr=log
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
        log.seek(0)
        if code not in (0, 128 + signal.SIGTERM):
            raise RuntimeError(f"the training ended with exit code {code}\n{log.read()[-2500:]}")
    return folder / "checkpoints" / "run"
