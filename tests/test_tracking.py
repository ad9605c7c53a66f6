"""``--track``: what a tracker is told, also after interruptions, and that it never does harm."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from fastcyclegan import command, trackers, train
from fastcyclegan.data.images import read_image
from fastcyclegan.errors import UserError
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog, read_metrics
from fastcyclegan.runs.tracking import Tracking
from fastcyclegan.trackers import TRACKERS, find_tracker
from house_rules import ROOT, imported_modules, python_sources
from test_resume import outcome, same
from tiny_runs import TINY, run_on_data

# Five steps to an epoch, ticks of two steps, previews of four: the last of 15 steps is a cut tick.
DECAY = ["--n_epochs", "1", "--n_epochs_decay", "2"]
TRACKED = ["--track", "tensorboard"]


def shown(root):
    """What TensorBoard shows of a run: {tag: [(step, value)]}, and {step: pixels} of previews."""
    events = EventAccumulator(str(root / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    read = {
        tag: [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    pictures = {}
    for step, (width, height, encoded) in read.pop("preview", ()):
        assert step not in pictures
        pictures[step] = np.asarray(Image.open(BytesIO(encoded)))
        assert pictures[step].shape == (int(height), int(width), 3)
    return {tag: [(step, float(x)) for step, x in values] for tag, values in read.items()}, pictures


def in_run_folder(root):
    """The same, as metrics.jsonl and the preview files have it."""
    scalars = {}
    for row in read_metrics(root / "metrics.jsonl"):
        if row["kind"] == "event":
            continue
        for name, value in row.items():
            if name not in ("schema", "kind", "step") and value is not None:
                value = float(np.float32(value))
                scalars.setdefault(f"{row['kind']}/{name}", []).append((row["step"], value))
    files = RunFolder(root).all_previews()
    return scalars, {step: read_image(path, 3) for step, path in files}


def assert_same_shown(root):
    (scalars, pictures), (wanted, files) = shown(root), in_run_folder(root)
    assert scalars == wanted
    assert pictures.keys() == files.keys()
    assert all(np.array_equal(pictures[step], files[step]) for step in files)


def test_tensorboard_shows_the_run_folder_and_changes_nothing(here):
    assert run_on_data(*DECAY, "--name", "tracked", *TRACKED) == 0
    assert run_on_data(*DECAY, "--name", "plain") == 0
    assert_same_shown(here / "checkpoints/tracked")
    scalars, pictures = shown(here / "checkpoints/tracked")
    assert {"train/D_A", "train/cycle_B", "train/lr_G", "train/img_per_s"} <= scalars.keys()
    assert [step for step, _ in scalars["train/idt_A"]] == [2, 4, 6, 8, 10, 12, 14, 15]
    assert list(pictures) == [4, 8, 12, 15]
    tracked, plain = (outcome(here / "checkpoints" / name) for name in ("tracked", "plain"))
    assert same(tracked, plain)
    assert not (here / "checkpoints/plain/tensorboard").exists()


def test_eval_rows_are_shown_too(here):
    words = ["--steps", "2", "--display_freq", "1", "--eval_every", "2", *TRACKED]
    assert command.run(train.main, [*TINY, "--n_epochs", "1", *words]) == 0
    scalars, _ = shown(here / "checkpoints/0001")
    assert [step for step, _ in scalars["eval/psnr_B"]] == [1, 2]
    assert [step for step, _ in scalars["eval/swd_B"]] == [2]
    assert_same_shown(here / "checkpoints/0001")


def test_interruptions_leave_no_double_and_no_missing_step(here, at):
    stops = at["stop"] = [0, 2, 6, 7, 12]
    for _ in list(stops):
        assert run_on_data(*DECAY, "--name", "parts", *TRACKED) == 143
    assert run_on_data(*DECAY, "--name", "parts", *TRACKED) == 0
    assert_same_shown(here / "checkpoints/parts")
    # beyond its end, whose cut tick of one step is written again as a tick of two
    assert run_on_data(*DECAY[:3], "3", "--name", "parts", *TRACKED) == 0
    scalars, _ = shown(here / "checkpoints/parts")
    assert [step for step, _ in scalars["train/D_A"]] == list(range(2, 21, 2))
    assert_same_shown(here / "checkpoints/parts")
    assert len(list((here / "checkpoints/parts/tensorboard").iterdir())) == 7


def test_a_killed_run_goes_on_without_what_it_did_twice(here):
    """Steps behind the last checkpoint were shown already, and are made again."""
    words = [*TINY, "--dataroot", "data", *DECAY, "--name", "k", *TRACKED]
    code = (
        "import os, sys; from fastcyclegan import train, command\n"
        "from fastcyclegan.steps.cyclegan import STEPS\n"
        "step = STEPS['fused']\n"
        "def killed(model, a, b, number):\n"
        "    if int(number[0]) == 9: os.kill(os.getpid(), 9)\n"
        "    return step(model, a, b, number)\n"
        "STEPS['fused'] = killed\n"
        "command.run(train.main, sys.argv[1:])"
    )
    save = ["--save_every_steps", "5"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *words, *save], env=env)
    assert done.returncode == -signal.SIGKILL
    assert shown(here / "checkpoints/k")[0]["train/D_A"][-1][0] == 8
    assert run_on_data(*DECAY, "--name", "k", *TRACKED, *save) == 0
    assert_same_shown(here / "checkpoints/k")


def test_going_back_in_a_run_takes_back_what_was_shown(here, at):
    at["spoil"] = [6, 7]
    words = ["--save_every_steps", "5", "--max_skips", "2", *TRACKED]
    assert run_on_data(*DECAY, "--name", "back", *words) == 0
    rows = read_metrics(here / "checkpoints/back/metrics.jsonl")
    assert "went back" in [row.get("event") for row in rows]
    assert_same_shown(here / "checkpoints/back")


def test_a_run_that_is_tracked_late_is_shown_whole(here):
    words = ["--name", "late", "--n_epochs", "1", "--n_epochs_decay"]
    assert run_on_data(*words, "0") == 0
    assert run_on_data(*words, "1", *TRACKED) == 0
    assert_same_shown(here / "checkpoints/late")
    assert [step for step, _ in shown(here / "checkpoints/late")[0]["train/D_A"]][:2] == [2, 4]


@pytest.fixture
def add_tracker(monkeypatch):
    """Registers a tracker under ``mine`` for the length of the test."""
    return lambda tracker: monkeypatch.setitem(TRACKERS, "mine", tracker)


CALLS = ("__init__", "rewind", "scalars", "picture", "close")


def failing(calls, name, number):
    """A tracker whose function ``name`` fails when it is called for the ``number``-th time."""

    def function(which):
        def called(self, *args):
            calls.append(which)
            if which == name and calls.count(which) == number:
                raise RuntimeError("no\nmore")

        return called

    return type("Failing", (), {which: function(which) for which in CALLS})


@pytest.mark.parametrize(
    ("name", "number"), [*((name, 1) for name in CALLS), ("scalars", 3), ("picture", 2)]
)
def test_a_tracker_that_fails_is_told_once_and_left_alone(here, add_tracker, capsys, name, number):
    calls = []
    add_tracker(failing(calls, name, number))
    assert run_on_data("--name", "run", *DECAY[:3], "0", "--track", "mine") == 0
    captured = capsys.readouterr()
    warnings = [line for line in (captured.out + captured.err).splitlines() if "warning" in line]
    assert warnings == ["warning: --track mine has failed and is switched off: no\\nmore"]
    assert "Traceback" not in captured.out + captured.err
    behind = calls[len(calls) - calls[::-1].index(name) :]
    assert behind == ([] if name in ("__init__", "close") else ["close"])
    assert read_metrics(here / "checkpoints/run/metrics.jsonl")[-1]["step"] == 5


@contextmanager
def no_file_above(size):
    """Longer files are impossible, which is what a full disk is to a writer.

    Not for longer than this: pytest's own output may be a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensorboard_on_a_full_disk(here):
    """What was shown before the disk was full stays readable; there is one warning."""
    folder, told = RunFolder(here), []
    folder.previews.mkdir()
    log, tracking = MetricsLog(folder.metrics), Tracking("tensorboard", folder, told.append)
    tracking.rewind(0, -1)
    tracking.row(*log.write("train", 1, D_A=0.5))
    with no_file_above(next((here / "tensorboard").iterdir()).stat().st_size + 10):
        for step in (2, 3):
            tracking.row({"kind": "train", "step": step, "D_A": 0.1})
            tracking.preview(step)
        tracking.close()
    assert len(told) == 1 and "File too large" in told[0]
    assert shown(here)[0] == {"train/D_A": [(1, 0.5)]}


def test_only_finite_numbers_are_shown(here):
    folder = RunFolder(here)
    folder.previews.mkdir()
    log, tracking = MetricsLog(folder.metrics), Tracking("tensorboard", folder, print)
    tracking.rewind(0, -1)
    tracking.row(*log.write("eval", 1, fid=float("nan"), features="abc", kid=2.0))
    tracking.row(*log.write("train", 2, D_A=float("inf")))
    tracking.row(*log.write("event", 3, event="skipped", files=3))
    tracking.close()
    assert shown(here) == ({"eval/kid": [(1, 2.0)]}, {})


def test_a_missing_extra_is_one_line_before_anything_is_done(here, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fastcyclegan.runs.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert run_on_data("--name", "run", *TRACKED) == 2
    out, err = capsys.readouterr()
    line = "needs tensorboard: pip install -e '.[track]', or leave it out"
    assert (out, err) == ("", f"error: --track tensorboard {line}\n")
    assert not Path("checkpoints").exists()


def test_a_broken_extra_is_one_line(monkeypatch):
    def broken(module):
        raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setattr(trackers, "import_module", broken)
    with pytest.raises(UserError, match=r"--track tensorboard cannot be used \(TypeError: Desc"):
        find_tracker("tensorboard")


def test_an_unknown_tracker_and_a_link_in_its_place_are_refused(here, capsys):
    assert run_on_data("--name", "run", "--track", "wandb") == 2
    assert "--track wandb: not one of tensorboard" in capsys.readouterr().err
    run = here / "checkpoints/run"
    run.mkdir(parents=True)
    (run / "tensorboard").symlink_to(here / "data")
    (run / "config.json").write_text("{}")
    assert run_on_data("--name", "run", "--resume_force", *TRACKED) == 2
    assert "tensorboard is a link" in capsys.readouterr().err


def test_nothing_imports_tensorboard_before_it_is_asked_for():
    """But by its name in TRACKERS."""
    ours = [source for source in python_sources() if source.packaged]
    found = {
        source.module
        for source in ours
        for _, name in imported_modules(source)
        if name.startswith(("tensorboard", "fastcyclegan.runs.tensorboard"))
    }
    assert found == {"fastcyclegan.runs.tensorboard"}
