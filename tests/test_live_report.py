"""The report during a training: there early, right at the end, and never the reason to stop."""

import html
import json
import re

import pytest

from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.runs.report import live
from fastcyclegan.runs.report.live import LiveReport
from fastcyclegan.runs.report.page import RunPage
from report_runs import make_preview, make_run
from tiny_runs import run_on_data


def read(root) -> tuple[str, dict]:
    """The text of a run's page, and what its script is given."""
    text = (root / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert sorted(p.name for p in root.glob(".tmp*")) == []
    return html.unescape(text), data


@pytest.fixture
def at_once(monkeypatch):
    """Every tick writes, unless the writing before is still going on."""
    monkeypatch.setattr(live, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(live, "SHARE", float("inf"))


def test_a_training_leaves_its_report_and_goes_on_with_it(here, capsys):
    assert run_on_data("--name", "r", "--steps", "4") == 0
    text, data = read(here / "checkpoints/r")
    assert "finished at step 4" in text and data["steps"] == [4] and data["last"] == 4
    assert "all of it on one page: checkpoints/r/report.html" in capsys.readouterr().out
    assert run_on_data("--name", "r", "--steps", "8") == 0
    text, data = read(here / "checkpoints/r")
    assert "finished at step 8" in text and data["steps"] == [4, 8]
    g = data["charts"][re.search(r'id="([\w-]+)">\s*<figcaption>\s*<h3>Generator', text)[1]]
    assert g["lines"][0]["x"] == [2, 4, 6, 8]
    assert '<th scope="row" class="number">8</th>' in text


def test_a_dcgan_has_one_too(here):
    from fastcyclegan import command, train
    from tiny_runs import TINY

    words = ["--model", "dcgan", "--dataroot", "data/trainA", "--steps", "4", "--batch_size", "2"]
    tiny = [w for w in TINY if w not in ("--netG", "resnet_1blocks", "--pool_size", "3")]
    assert command.run(train.main, [*tiny, *words, "--display_freq", "4"]) == 0
    text, data = read(here / "checkpoints/0001")
    assert "DCGAN, 32 px, batch 2, fp32" in text and data["steps"] == [2, 4]
    assert "What the discriminator says" in text and "D_G_z2" in text


def test_it_is_written_while_the_training_goes_on(here, at_once, monkeypatch):
    written, write = [], RunPage.write

    def counted(self):
        written.append(self.history.last.get("step"))
        return write(self)

    monkeypatch.setattr(RunPage, "write", counted)
    assert run_on_data("--name", "r", "--steps", "12") == 0
    assert len(written) >= 3 and written == sorted(written)
    assert written[0] < 12 and written[-1] == 12


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), ZeroDivisionError()])
def test_a_report_that_fails_stops_nothing_and_is_told_once(
    here, at_once, monkeypatch, capsys, problem
):
    def fails(self):
        raise problem

    monkeypatch.setattr(RunPage, "html", fails)
    assert run_on_data("--name", "r", "--steps", "8") == 0
    out = capsys.readouterr().out
    assert out.count("report.html could not be written") == 1
    assert ("No space left on device" in out) == isinstance(problem, OSError)
    assert "done: weights in" in out


def test_pictures_of_a_future_that_was_left_are_not_shown(tmp_path, at_once):
    folder = make_run(tmp_path / "r", steps=40, previews=4)
    MetricsLog(folder.metrics).rewind(10)
    report = LiveReport(folder, pytest.fail)
    report.tick(10)
    assert report._writer.finish() is None
    assert read(folder.root)[1] | {"charts": 0, "geometry": 0} == {
        "steps": [10], "last": 10, "charts": 0, "geometry": 0,
    }  # fmt: skip
    make_preview(folder, 20)
    MetricsLog(folder.metrics).write("train", 20, G_A=1.0)
    report._next = 0
    report.tick(20)
    assert report._writer.finish() is None
    assert read(folder.root)[1]["steps"] == [10, 20]


def test_a_long_writing_makes_the_next_one_wait(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    folder, jobs = make_run(tmp_path / "r"), []
    report = LiveReport(folder, pytest.fail)

    def write(done=None):
        jobs.append((clock[0], done))
        report._took = 2.0

    report._write = write
    for second in range(300):
        clock[0] = float(second)
        report.tick(second)
        if report._writer._thread:
            report._writer._thread.join()
    # five seconds, then 2 s are two in a hundred of 100
    assert [at for at, _ in jobs] == [5, 106, 207]
