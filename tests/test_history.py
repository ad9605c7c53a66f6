"""metrics.jsonl as the report reads it: each byte once, whatever it holds, anew when it changed."""

import json

import pytest

from fastcyclegan.runs.metrics import MetricsLog, read_metrics
from fastcyclegan.runs.report.history import MAX_CURVES, MAX_EVENTS, History, finite, shortened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def means(curve) -> list:
    return [(p.step, p.mean) for p in curve.points]


def test_rows_become_curves_of_their_kind(path):
    log = MetricsLog(path)
    log.write("train", 10, images=20, epoch=1, lr_G=0.1, G=1.5)
    log.write("eval", 10, psnr_A=20)
    log.write("train", 20, images=40, epoch=2, lr_G=0.05, G=float("nan"))
    log.write("event", 20, event="interrupted", signal=15)
    history = History(path)
    history.refresh()
    assert list(history.train) == ["lr_G", "G"] and list(history.evals) == ["psnr_A"]
    assert means(history.train["G"]) == [(10, 1.5), (20, None)]
    assert history.last == {"step": 20, "images": 40, "epoch": 2} and history.last_step == 20
    assert list(history.events) == [(20, "interrupted: signal 15")]


def test_each_byte_is_read_once_however_long_the_run_is(path):
    """The cost of a rewriting is that of the new rows: counted, not timed."""
    log, history = MetricsLog(path), History(path)
    costs = []
    for i in range(3000):
        log.write("train", i + 1000, G=0.25)
        if i % 10 == 9:
            before = history.rows, history.bytes
            history.refresh()
            costs.append((history.rows - before[0], history.bytes - before[1]))
    assert set(costs) == {(10, 10 * len(path.read_bytes()) // 3000)}
    assert len(history.train["G"].points) <= 1000
    history.refresh()
    assert history.rows == 3000 and history.bytes == path.stat().st_size


def test_in_pieces_or_at_once_it_is_the_same(path):
    rows = b"".join(json.dumps({"kind": "train", "step": i, "G": i % 7}).encode() + b"\n"
                    for i in range(2500))  # fmt: skip
    pieces = History(path)
    for end in (0, 11, 20_000, 20_013, len(rows) - 1, len(rows)):
        path.write_bytes(rows[:end])
        pieces.refresh()
    whole = History(path)
    whole.refresh()
    assert means(pieces.train["G"]) == means(whole.train["G"]) and pieces.rows == 2500
    assert pieces.bytes == len(rows)


def test_a_run_that_went_back_is_read_anew(path):
    log, history = MetricsLog(path), History(path)
    for step in range(1, 9):
        log.write("train", step, G=step)
    history.refresh()
    log.rewind(4)
    for step in range(5, 12):
        log.write("train", step, G=-step)
    history.refresh()
    assert means(history.train["G"]) == [(s, s if s < 5 else -s) for s in range(1, 12)]
    path.unlink()
    history.refresh()
    assert history.train == {} and history.last_step == 0


def test_a_line_still_being_written_waits(path):
    path.write_bytes(b'{"kind": "train", "step": 1, "G": 1}\n{"kind": "train", "step": 2, "G"')
    history = History(path)
    history.refresh()
    assert history.rows == 1
    with open(path, "ab") as file:
        file.write(b": 2}\n")
    history.refresh()
    assert means(history.train["G"]) == [(1, 1), (2, 2)]


HOSTILE = [
    b"\xff\xfe\n",
    b"[" * 60_000 + b"\n",
    b'{"kind": "train", "step": true, "G": 1}\n',
    b'{"kind": "train", "step": -1, "G": 1}\n',
    b'{"kind": "train", "step": 1e3, "G": 1}\n',
    b'{"kind": "train", "step": 1' + b"0" * 30 + b', "G": 1}\n',
    b'{"kind": ["train"], "step": 1, "G": 1}\n',
    b"x" * 200_000 + b"\n",
]


def test_lines_that_are_no_rows_are_passed_over(path):
    path.write_bytes(b"".join(HOSTILE) + b'{"kind": "train", "step": 2, "G": 5}\n')
    history = History(path)
    history.refresh()
    assert means(history.train["G"]) == [(2, 5)] and history.last_step == 2
    assert len(read_metrics(path)) >= 1


def test_values_and_names_that_cannot_be_drawn(path):
    values = {"a": "text", "b": True, "c": [1], "d": {"x": 1}, "e": 10**400, "f": 1e300, "g": 1}
    path.write_text(json.dumps({"kind": "eval", "step": 1, **values, "h i": 1, "j" * 99: 1}) + "\n")
    history = History(path)
    history.refresh()
    assert {name: means(c) for name, c in history.evals.items()} == {
        "e": [(1, None)], "f": [(1, None)], "g": [(1, 1)],
    }  # fmt: skip
    assert finite(float("inf")) is None and finite("x") is None and finite(None) is None


def test_what_a_page_holds_is_bounded(path):
    log = MetricsLog(path)
    log.write("train", 1, **{f"loss{i}": 1.0 for i in range(MAX_CURVES + 9)})
    for step in range(MAX_EVENTS + 5):
        log.write("event", step, event="skipped", images=["x" * 5000])
    history = History(path)
    history.refresh()
    assert len(history.train) == MAX_CURVES and history.crowded
    assert len(history.events) == MAX_EVENTS and history.event_count == MAX_EVENTS + 5
    assert all(len(text) <= 300 for _, text in history.events)
    assert shortened("a\nb\u202e\udcff") == "a\\nb\\u202e\\udcff"
