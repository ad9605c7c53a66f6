"""What a power cut leaves: names and contents reach the disk in an order that never loses a save.

The calls are recorded, as no test can cut the power.
"""

import os
from pathlib import Path

import pytest

from fastcyclegan.runs.folder import open_run
from fastcyclegan.runs.metrics import MetricsLog
from test_checkpoint import save
from tiny_runs import run_on_data


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """("fsync", file) and ("rename", target), as they come, relative to ``tmp_path``."""
    found, fsync, replace = [], os.fsync, os.replace

    def shown(path):
        name = str(Path(path).relative_to(tmp_path))
        return name.replace(f"-{os.getpid()}", "") if "/.tmp-step" in name else name

    def recorded_fsync(descriptor):
        found.append(("fsync", shown(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def recorded_replace(source, target):
        found.append(("rename", shown(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    return found


def test_a_checkpoint_is_durable_before_anything_relies_on_it(tmp_path, calls):
    run = open_run(tmp_path, "x", "d")
    MetricsLog(run.metrics).write("train", 1, G_A=0.5)
    calls.clear()
    save(run, 1)
    new = "x/ckpt/.tmp-step-00000001"
    until_named = [
        *[("fsync", "x/metrics.jsonl"), ("fsync", "x")],
        *[("fsync", f"{new}/{name}.safetensors") for name in ("G_A", "D_A", "train_state")],
        *[("fsync", f"{new}/state.json"), ("fsync", new)],
    ]
    assert calls[:7] == until_named
    assert calls[7:9] == [("rename", "x/ckpt/step-00000001"), ("fsync", "x/ckpt")]
    # and each network's file: itself, its name, the folder
    assert [what for what, _ in calls[9:]] == ["fsync", "rename", "fsync"] * 2
    assert [name for _, name in calls[10::3]] == [
        f"x/weights/{n}.safetensors" for n in ("G_A", "D_A")
    ]
    calls.clear()
    save(run, 1)
    assert calls[7:10] == [
        ("rename", "x/ckpt/step-00000001.old"),
        ("rename", "x/ckpt/step-00000001"),
        ("fsync", "x/ckpt"),
    ]


def test_older_checkpoints_go_only_when_the_new_one_is_durable(tmp_path, calls, monkeypatch):
    run = open_run(tmp_path, "x", "d")
    save(run, 1)
    unlink, gone = Path.unlink, []

    def recorded(path, missing_ok=False):
        gone.append((path.name, calls[-1]))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", recorded)
    save(run, 2, keep=1)
    assert gone == [("state.json", ("fsync", "x/ckpt"))]


def test_metrics_that_cannot_be_made_durable_do_not_cost_the_checkpoint(tmp_path, monkeypatch):
    run = open_run(tmp_path, "x", "d")
    MetricsLog(run.metrics).write("train", 1, G_A=0.5)
    fsync = os.fsync

    def failing(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    assert save(run, 1).is_dir()


def test_a_new_run_is_durable_from_its_name_to_its_folders(tmp_path, calls):
    open_run(tmp_path / "a/b", None, "d")
    made = [call for call in calls if call[0] == "fsync" and ".tmp-" not in call[1]]
    # a in its parent, b in a; config.json and the folders in the run; the run in b
    assert made == [("fsync", x) for x in (".", "a", "a/b/0001", "a/b/0001", "a/b")]


def test_a_parent_that_cannot_be_looked_at_is_no_reason_to_refuse(tmp_path, monkeypatch):
    opened = os.open

    def refused(path, *arguments):
        if path == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refused)
    assert open_run(tmp_path / "a", None, "d").ckpt.is_dir()


def test_what_a_kill_left_of_the_first_file_does_not_bar_the_name(here):
    root = here / "checkpoints/mine"
    root.mkdir(parents=True)
    (root / ".tmp-0123456789ab").write_text("{")
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    assert not list(root.rglob(".tmp-*"))


def test_leftovers_are_removed_at_the_start_by_the_run_that_has_the_lock(here, capsys):
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    root = here / "checkpoints/mine"
    (root / "repro-step-00000001").mkdir()
    left = [
        root / place / ".tmp-0123" for place in ("", "previews", "weights", "repro-step-00000001")
    ]
    for path in left:
        path.write_text("half")
    (root / "ckpt/.tmp-step-00000009-77").mkdir()
    run = open_run(here / "checkpoints", "other", "d")
    (run.root / ".tmp-1").write_text("half")
    (root / "previews/.tmp-link").symlink_to(run.root)
    left += [root / "ckpt/.tmp-step-00000009-77", root / "previews/.tmp-link"]
    with open_run(here / "checkpoints", "mine", "", force=True).locked():
        assert run_on_data("--name", "mine", "--steps", "4") == 2
    assert all(path.exists() for path in left)
    assert run_on_data("--name", "mine", "--steps", "4") == 0
    assert not any(path.exists() for path in left) and not list(root.rglob(".tmp-*"))
    assert (run.root / ".tmp-1").exists()
