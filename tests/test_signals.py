"""SIGINT wherever a training may be: it ends at the next step boundary, and continues as it was."""

import os
import signal

import pytest

from fastcyclegan import recorder
from fastcyclegan.judge import Judge
from fastcyclegan.recorder import Recorder
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.systems.cyclegan import CycleGANSystem
from test_resume import DECAY, outcome, same
from tiny_runs import make_images, run_on_data

WORDS = [*DECAY, "--eval_every", "5", "--save_every_steps", "3"]
# Where it comes, and in which step that is.
PLACES = {
    "the copy of a checkpoint": (recorder, "take_snapshot", 3),
    "the writing of a checkpoint": (recorder, "write_checkpoint", 3),
    "a row of the metrics": (MetricsLog, "write", 2),
    "a preview": (CycleGANSystem, "show", 4),
    "the drawing of a preview": (CycleGANSystem, "draw", 4),
    "an evaluation": (Judge, "scores", 5),
    "the keeping of the best": (Judge, "keep", 5),
    "a tick": (Recorder, "_tick", 2),
}


def once_in(monkeypatch, owner, name):
    """SIGINT comes in the first call of ``name``, whatever thread it is made in."""
    call, calls = getattr(owner, name), []

    def interrupted(*given, **options):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return call(*given, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that was not, and what it leaves."""
    root = tmp_path_factory.mktemp("signals")
    for seed, (name, n) in enumerate((("trainA", 5), ("trainB", 3), ("testA", 2), ("testB", 2))):
        make_images(root / "data" / name, n, (32, 32), seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run_on_data(*WORDS, "--name", "whole") == 0
    return root, outcome(root / "checkpoints/whole")


@pytest.mark.parametrize("place", PLACES)
def test_it_saves_and_stops_behind_what_it_was_doing(uninterrupted, monkeypatch, place):
    root, whole = uninterrupted
    owner, name, done = PLACES[place]
    words, parts = [*WORDS, "--name", name], RunFolder(root / "checkpoints" / name)
    monkeypatch.chdir(root)
    once_in(monkeypatch, owner, name)
    assert run_on_data(*words) == 130
    # another thread may tell the next step
    assert latest_checkpoint(parts)[0] in (done, done + (name == "write_checkpoint"))
    assert run_on_data(*words) == 0
    assert same(whole, outcome(parts.root))
