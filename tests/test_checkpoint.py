"""Checkpoints: complete or absent, verified, pruned, and kept when the disk is full."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch

from fastcyclegan import files
from fastcyclegan.errors import UserError
from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator
from fastcyclegan.models.weights import load_network
from fastcyclegan.runs import checkpoint, sealed
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from fastcyclegan.runs.folder import open_run


@pytest.fixture
def run(tmp_path):
    return open_run(tmp_path, "x", "digest")


def networks(seed=0):
    torch.manual_seed(seed)
    return {"G_A": ResnetGenerator(ngf=2, n_blocks=1), "D_A": NLayerDiscriminator(ndf=2)}


def save(run, step, keep=3, **arguments):
    nets = arguments.pop("networks", None) or networks(step)
    moments = {"G_A.model.1.weight.exp_avg": torch.full((2, 3), float(step))}
    return save_checkpoint(run, step, nets, moments, {"images": step}, keep=keep)


def steps(run):
    return sorted(path.name for path in run.ckpt.iterdir())


def test_everything_comes_back_bit_for_bit(run):
    nets = networks()
    buffer = torch.arange(24).reshape(2, 12)
    train_state = {
        "pool_A": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "bf16": torch.randn(5).bfloat16(),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "left": buffer[:, :6],
        "again": buffer,
        "none": torch.zeros(0, 3),
    }
    state = {
        "lr": 0.1 + 0.2,
        "big": 2**63,
        "name": "ä\udcff",
        "list": [1, None, True],
        "10": {"2": 3},
    }
    path = save_checkpoint(run, 500, nets, train_state, state)
    assert path == run.ckpt / "step-00000500"
    assert sorted(os.listdir(path)) == [
        "D_A.safetensors",
        "G_A.safetensors",
        "state.json",
        "train_state.safetensors",
    ]
    state_dicts, train_back, state_back = load_checkpoint(path)
    assert state_back == state
    assert state_dicts.keys() == nets.keys() and train_back.keys() == train_state.keys()
    for name, net in nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(state_dicts[name][key], value)
    for key, value in train_state.items():
        assert train_back[key].dtype == value.dtype
        assert torch.equal(train_back[key].nan_to_num(9.0), value.nan_to_num(9.0))


def test_empty_states_are_saved_too(run):
    assert load_checkpoint(save_checkpoint(run, 0, {}, {}, {})) == ({}, {}, {})


def test_state_comes_back_as_json_would_return_it(run):
    path = save_checkpoint(run, 1, {}, {}, {10: (1, 2), 9: {2: None}})
    assert load_checkpoint(path)[2] == {"10": [1, 2], "9": {"2": None}}


def test_weights_are_the_newest_networks(run):
    save(run, 1)
    nets = networks(2)
    save(run, 2, networks=nets)
    assert sorted(os.listdir(run.weights)) == ["D_A.safetensors", "G_A.safetensors"]
    net, metadata = load_network(run.weights / "G_A.safetensors")
    assert metadata["step"] == 2
    assert torch.equal(
        net.state_dict()["model.1.weight"], nets["G_A"].state_dict()["model.1.weight"]
    )


def test_the_newest_is_found_by_number_and_none_when_there_is_none(run):
    assert latest_checkpoint(run) is None
    shutil.rmtree(run.ckpt)
    assert latest_checkpoint(run) is None
    run.ckpt.mkdir()
    for step in (99_999_999, 100_000_000):
        save(run, step)
    assert latest_checkpoint(run) == (100_000_000, run.ckpt / "step-100000000")


def test_only_the_newest_are_kept(run):
    for step in (1, 2, 3, 4):
        save(run, step, keep=2)
    assert steps(run) == ["step-00000003", "step-00000004"]
    save(run, 5, keep=1)
    assert steps(run) == ["step-00000005"]
    with pytest.raises(ValueError, match="keep"):
        save(run, 6, keep=0)


def test_saving_at_an_earlier_step_drops_the_later_ones(run):
    for step in (10, 20, 30):
        save(run, step)
    save(run, 15, keep=1)
    assert steps(run) == ["step-00000015"]


def test_a_step_can_be_saved_again(run):
    save(run, 10)
    save_checkpoint(run, 10, networks(), {}, {"images": "again"}, keep=1)
    assert steps(run) == ["step-00000010"]
    assert load_checkpoint(run.ckpt / "step-00000010")[2] == {"images": "again"}


def test_a_crash_while_a_step_is_replaced_leaves_the_first_one(run, monkeypatch):
    save(run, 10)
    replace = os.replace

    def crash(source, target):
        if target == run.ckpt / "step-00000010":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(run, 10)
    monkeypatch.undo()
    assert latest_checkpoint(run) == (10, run.ckpt / "step-00000010.old")
    save(run, 10)
    assert steps(run) == ["step-00000010"]


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["G_A.safetensors", "train_state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["last byte", "middle", "cut", "gone", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_named(name, damage, run):
    save(run, 1)
    path = save(run, 2) / name
    size = path.stat().st_size
    if damage == "last byte":
        flip(path, size - (3 if name == "state.json" else 1))
    elif damage == "middle":
        flip(path, size // 2)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: size // 2])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    passed_over = []
    found = latest_checkpoint(run, lambda *damaged: passed_over.append(damaged))
    assert found == (1, run.ckpt / "step-00000001")
    [(folder, message)] = passed_over
    assert folder == path.parent and str(path) in message and "\n" not in message
    with pytest.raises(UserError, match=name):
        load_checkpoint(path.parent)


def test_state_json_is_protected_where_it_stays_valid_json(run):
    path = save(run, 2) / "state.json"
    path.write_text(path.read_text().replace('"images": 2', '"images": 3'))
    with pytest.raises(UserError, match=r"state\.json"):
        load_checkpoint(path.parent)


def test_files_outside_the_folder_are_not_read(run):
    path = save(run, 2) / "state.json"
    content = json.loads(path.read_text())
    content["body"]["files"]["../../config.json"] = {}
    content["crc32"] = sealed._crc(content["body"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lists"):
        load_checkpoint(path.parent)


def test_after_damage_the_next_save_does_not_prune_the_good_ones(run):
    for step in (1, 2, 3):
        path = save(run, step)
    flip(path / "G_A.safetensors", 500)
    assert latest_checkpoint(run)[0] == 2
    save(run, 2, keep=1)
    assert steps(run) == ["step-00000002"]
    assert latest_checkpoint(run)[0] == 2


def test_leftovers_of_a_killed_save_are_ignored_and_removed(run):
    save(run, 1)
    shutil.copytree(run.ckpt / "step-00000001", run.ckpt / ".tmp-00000002-99")
    (run.weights / ".tmp-0123").touch()
    assert latest_checkpoint(run)[0] == 1
    save(run, 2)
    assert steps(run) == ["step-00000001", "step-00000002"]
    assert sorted(os.listdir(run.weights)) == ["D_A.safetensors", "G_A.safetensors"]


@pytest.mark.parametrize("after", range(6))
def test_a_disk_that_fills_up_keeps_the_previous_checkpoint(after, run, monkeypatch):
    save(run, 1)
    weights = {path.name: path.read_bytes() for path in run.weights.iterdir()}
    fsync, done = os.fsync, []

    def fsync_until_full(descriptor):
        if len(done) == after:
            raise OSError(28, "No space left on device")
        done.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_until_full)
    with pytest.raises(OSError, match="No space"):
        save(run, 2, keep=1)
    monkeypatch.undo()
    # 4 files, their folder, ckpt: only with the sixth fsync does the name of step 2 exist.
    assert latest_checkpoint(run)[0] == (2 if after == 5 else 1)
    assert not list(run.root.rglob(".tmp-*"))
    assert {path.name: path.read_bytes() for path in run.weights.iterdir()} == weights


def test_too_little_space_is_noticed_before_anything_is_written(run, monkeypatch):
    save(run, 1)
    usage = namedtuple("usage", "total used free")(10**6, 10**6, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(files, "write_durable", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(sealed, "write_durable", lambda *_: pytest.fail("written"))
    with pytest.raises(OSError, match="a checkpoint needs"):
        save(run, 2)
    assert steps(run) == ["step-00000001"]


SAVER = """
import sys, torch
from pathlib import Path
from fastcyclegan.models import NLayerDiscriminator
from fastcyclegan.runs.checkpoint import save_checkpoint
from fastcyclegan.runs.folder import RunFolder
nets, step = {"D_A": NLayerDiscriminator(ndf=8)}, int(sys.argv[2])
while True:
    step += 1
    save_checkpoint(RunFolder(Path(sys.argv[1])), step, nets, {"x": torch.zeros(9)}, {}, keep=2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_saver_never_loses_what_it_reported(run):
    step = 0
    for attempt in range(10):
        command = [sys.executable, "-c", SAVER, str(run.root), str(step)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        reported = int(process.stdout.readline())
        time.sleep(0.01 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        reported = int((process.communicate()[0].split() or [reported])[-1])
        step, path = latest_checkpoint(run, lambda *damaged: pytest.fail(str(damaged)))
        assert step >= reported
        load_checkpoint(path)


def test_milestones_stay_and_the_others_go(run):
    for step in range(1, 7):
        snapshot = checkpoint.take_snapshot(step, networks(step), {}, {}, milestone=step in (2, 4))
        checkpoint.write_checkpoint(run, snapshot, keep=1)
    assert steps(run) == ["step-00000002", "step-00000004", "step-00000006"]
    save(run, 3, keep=1)  # the run has left the future that milestone 4 was in
    assert steps(run) == ["step-00000002", "step-00000003"]


def test_a_snapshot_does_not_follow_the_run(run):
    nets, pool = networks(1), torch.ones(4)
    state = {"list": [1]}
    snapshot = checkpoint.take_snapshot(1, nets, {"pool": pool}, state)
    with torch.no_grad():
        nets["G_A"].state_dict()["model.1.weight"].zero_()
        pool.zero_()
    state["list"].append(2)
    weights, tensors, kept = load_checkpoint(checkpoint.write_checkpoint(run, snapshot))
    assert weights["G_A"]["model.1.weight"].any() and tensors["pool"].all()
    assert kept == {"list": [1]}
