"""metrics.jsonl: rows, non-finite values, torn lines, rewinding."""

import json
import os
import resource

import numpy as np
import pytest
import torch

from fastcyclegan.runs.metrics import MetricsLog, read_metrics


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_a_row_is_one_json_line_with_schema_kind_and_step(log):
    log.write("train", 20, images=20, G_A=0.5)
    log.write("event", 21, text="line\nbreak \udcff")
    lines = log.path.read_bytes().splitlines()
    assert json.loads(lines[0]) == {
        "schema": 1,
        "kind": "train",
        "step": 20,
        "images": 20,
        "G_A": 0.5,
    }
    assert [row["kind"] for row in read_metrics(log.path)] == ["train", "event"]
    assert len(lines) == 2


def test_a_row_is_on_the_file_when_write_returns(log):
    log.write("eval", 1, psnr=20.0)
    assert log.path.read_bytes().endswith(b"\n")


def test_non_finite_values_become_null_at_every_depth(log):
    log.write(
        "train",
        1,
        a=float("nan"),
        b=np.float32("inf"),
        c=torch.tensor(float("-inf")),
        d={"e": [float("nan"), 2.0]},
        f=np.int64(3),
    )
    row = read_metrics(log.path)[0]
    assert (row["a"], row["b"], row["c"], row["d"], row["f"]) == (
        None,
        None,
        None,
        {"e": [None, 2.0]},
        3,
    )


def test_an_unknown_kind_is_refused(log):
    with pytest.raises(ValueError, match="loss"):
        log.write("loss", 1)


def test_a_torn_last_line_is_removed_when_the_log_is_opened(log):
    log.write("train", 1, G_A=1.0)
    with open(log.path, "a") as file:
        file.write('{"schema": 1, "kind": "train", "st')
    assert [row["step"] for row in read_metrics(log.path)] == [1]
    MetricsLog(log.path).write("train", 2, G_A=2.0)
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2]
    assert b"st{" not in log.path.read_bytes()


def test_rewind_drops_later_rows_only_and_says_how_many(log):
    for step in (10, 20, 30, 40):
        log.write("train", step, G_A=step / 7)
    before = read_metrics(log.path)
    assert log.rewind(20) == 2
    assert read_metrics(log.path) == before[:2]
    log.write("train", 30, G_A=0.0)
    assert [row["step"] for row in read_metrics(log.path)] == [10, 20, 30]
    assert [path.name for path in log.path.parent.iterdir()] == ["metrics.jsonl"]


def test_rewind_of_a_log_without_rows_does_nothing(log):
    assert log.rewind(5) == 0
    assert not log.path.exists()


def test_a_rewind_that_drops_nothing_needs_no_room(log, monkeypatch):
    log.write("train", 1, G_A=1.0)
    monkeypatch.setattr("fastcyclegan.files.write_durable", lambda *_: pytest.fail("written"))
    assert log.rewind(5) == 0


@pytest.fixture
def room(log):
    """A function that leaves so many bytes for the file, or all."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def leave(size=None):
        limit = before[0] if size is None else log.path.stat().st_size + size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    yield leave
    leave()


def test_rows_that_a_full_disk_cuts_wait_whole_for_the_next(log, room):
    log.write("train", 1, G_A=1.0)
    before = log.path.read_bytes()
    for step, size in ((2, 30), (3, 0)):
        room(size)
        with pytest.raises(OSError, match="File too large"):
            log.write("train", step, G_A=1.0)
        assert log.path.read_bytes() == before
    room()
    assert [row["step"] for row in log.write("train", 4, G_A=1.0)] == [2, 3, 4]
    assert [json.loads(line)["step"] for line in log.path.read_bytes().splitlines()] == [1, 2, 3, 4]


def test_rows_that_wait_are_rewound_too(log, room):
    log.write("train", 1, G_A=1.0)
    room(10)
    for step in (2, 3):
        with pytest.raises(OSError, match="File too large"):
            log.write("train", step, G_A=1.0)
    room()
    log.rewind(2)
    log.write("train", 3, G_A=2.0)
    assert [(row["step"], row["G_A"]) for row in read_metrics(log.path)] == [
        (1, 1.0), (2, 1.0), (3, 2.0),
    ]  # fmt: skip


def test_a_torn_line_goes_where_there_is_no_room_for_a_copy(log, monkeypatch):
    log.write("train", 1, G_A=1.0)
    with open(log.path, "a") as file:
        file.write('{"schema": 1, "kind": "tr')
    monkeypatch.setattr("fastcyclegan.files.write_durable", lambda *_: pytest.fail("copied"))
    again = MetricsLog(log.path)
    again.write("train", 2, G_A=2.0)
    assert [json.loads(line)["step"] for line in log.path.read_bytes().splitlines()] == [1, 2]
    assert os.listdir(log.path.parent) == ["metrics.jsonl"]
