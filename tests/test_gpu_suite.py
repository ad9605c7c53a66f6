"""The GPU suite: budget, resuming, what crashes; and the whole of it, rehearsed on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import suite_stub
from bench.gpu_suite import __main__ as suite
from bench.gpu_suite import cases, record
from bench.gpu_suite.cases import CRASHED, DONE, FAILED, LATE, LEFT, Plan
from bench.gpu_suite.processes import counted
from bench.gpu_suite.record import Record
from bench.gpu_suite.runner import run_part
from bench.gpu_suite.summary import summary
from bench.gpu_suite.worker import Outcome
from bench.recorded import load
from fastcyclegan import command
from fastcyclegan.errors import UserError
from house_rules import ROOT

VARIABLES = ("FASTCYCLEGAN_PEER_JZ", "FASTCYCLEGAN_PEER_EXAMPLES", "FASTCYCLEGAN_DATA")
STATES = {"quick": DONE, "wrong": FAILED, "crash": CRASHED, "long": LEFT, "late": LATE}
STATES |= {"first": DONE, "second": DONE, "told": FAILED}


@pytest.fixture(autouse=True)
def no_peers(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def run(out: Path, *only: str, budget: float = 100.0) -> tuple[Record, list[str]]:
    """The stub's cases, and what was begun."""
    (out / "begun").write_text("")
    plan = Plan(out, budget, rehearse=True)
    found = run_part("stub", suite_stub.__name__, plan, only, lambda line: None)
    return found, (out / "begun").read_text().split()


def states(found: Record) -> dict[str, str]:
    return {name: case["state"] for name, case in found.cases.items()}


def test_what_fails_crashes_or_hangs_fails_alone(tmp_path):
    found, begun = run(tmp_path)
    assert states(found) == STATES and begun == [name for name in STATES if name != "long"]
    case = found.cases
    assert case["quick"]["result"] == {"answer": 42}
    assert case["wrong"]["error"].startswith("ValueError: a value") and "_raise" in str(case)
    assert "SIGABRT" in case["crash"]["error"] and "suite_stub.py" in case["crash"]["error"]
    assert "takes about 100000 s" in case["long"]["error"]
    assert case["first"]["result"]["pid"] == case["second"]["result"]["pid"] != os.getpid()
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "zombie" in _status(child)
    assert json.loads((tmp_path / "stub.json").read_text())["cases"].keys() == STATES.keys()


ALONE = """
import os, sys
from pathlib import Path
import suite_stub
from bench.gpu_suite.cases import Plan
from bench.gpu_suite.worker import Worker

if __name__ == "__main__":
    plan = Plan(Path(sys.argv[1]), 100, rehearse=True)
    worker = Worker(suite_stub.__name__, plan)
    late = next(case for case in suite_stub.cases(plan) if case.name == "late")
    worker._mine.send(late.name)
    while not (plan.out / "child").exists():
        pass
    os.kill(os.getpid(), 9)
"""


def test_what_was_begun_ends_with_a_suite_that_is_killed(tmp_path):
    (tmp_path / "alone.py").write_text(ALONE)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    command = [sys.executable, str(tmp_path / "alone.py"), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == -signal.SIGKILL
    child, end = int((tmp_path / "child").read_text()), time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and "zombie" not in _status(child):
        assert time.monotonic() < end
        time.sleep(0.1)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "zombie"


def test_a_second_call_does_the_rest_and_what_failed_last(tmp_path):
    run(tmp_path, "wrong", "first")
    found, begun = run(tmp_path, "wrong", "first", "second")
    assert begun == ["second", "wrong"] and states(found)["wrong"] == FAILED
    found, begun = run(tmp_path, "first", "second", budget=0.05)
    assert begun == [] and states(found) == {"wrong": FAILED, "first": DONE, "second": DONE}
    found, begun = run(tmp_path, "wrong", "told", budget=0.05)
    assert begun == [] and states(found)["told"] == LEFT and states(found)["wrong"] == FAILED


def test_some_run_beside_each_other_and_what_is_wanted_most_runs_first(tmp_path, monkeypatch):
    """The record has them in the order of the table all the same."""
    (tmp_path / "pair").touch()
    monkeypatch.setattr(suite_stub, "LANES", 2, raising=False)
    found, begun = run(tmp_path)
    assert set(states(found).values()) == {DONE} and len(begun) == 5
    assert begun[0] == "alone" and begun.index("after") == 4
    assert list(found.cases) == ["left", "right", "after", "before", "alone"]


def test_the_summary_comes_to_an_end_with_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(cases.PARTS, "stub", suite_stub.__name__)
    found, _ = run(tmp_path, "quick", "wrong", "long")
    plan = Plan(tmp_path, 1, rehearse=True)
    text = "\n".join(summary([found], plan))
    assert "== stub: 1 done, 1 failed, 1 left out" in text and "quick: {'answer': 42}" in text
    assert "failed: wrong: ValueError: a value" in text and "left out: long" in text
    assert "the same command again" in text and text.endswith("is a figure")
    found.found["machine"]["gpu"] = "NVIDIA H200"
    last = list(summary([found], Plan(tmp_path, 1)))[-1]
    assert "bench/results/nvidia-h200/ && python -m bench.report" in last
    assert list(summary([], plan)) == []


def test_to_accept_results_loses_no_earlier_probes(tmp_path, monkeypatch):
    """The printed command itself, thrice: the first probes, some others, and others again."""
    root, out = tmp_path / "root", tmp_path / "out of a GPU"
    monkeypatch.setattr("bench.gpu_suite.summary.ROOT", root)
    monkeypatch.chdir(tmp_path)
    for folder in (root, out):
        folder.mkdir()
    record = Record("ladder", Plan(out, 1), {"gpu": "Some GPU 1"})
    monkeypatch.setattr("bench.gpu_suite.summary.part_of", lambda name: SimpleNamespace(lines=list))
    for text in ("first", "second", "third"):
        for name in ("probes.json", "ladder.json", "ladder.png"):
            (out / name).write_text(text)
        said = list(summary([record], Plan(out, 1)))[-1].removeprefix("to accept: ")
        words = said.removesuffix(" && python -m bench.report")
        subprocess.run(words, shell=True, check=True, cwd=root)
    found = {path.name: path.read_text() for path in (root / "bench/results/some-gpu-1").iterdir()}
    assert found == {"ladder.json": "third", "ladder.png": "third", "probes.json": "first"} | {
        "probes_2.json": "second",
        "probes_3.json": "third",
    }


def main(*words: str) -> int:
    return command.run(suite.main, list(words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part", "all"], "--part: invalid choice: 'all'"),
        (["--budget", "0"], "--budget: 0 is no number of seconds"),
        (["--budget", "soon"], "--budget: soon is no number of seconds"),
        (["--wrong"], "unrecognized arguments: --wrong"),
        (["--out", "file", "--rehearse"], "is a file; name a folder"),
        (["--out", "file/below", "--rehearse"], "Not a directory; name another folder"),
        (["--rehearse", "--part", "ops", "--only", "xyz"], "--only xyz: no case of ops"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main("--out", "out", *words) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_folder_that_is_not_what_a_variable_says(tmp_path, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert main("--out", str(tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert f"{variable} {tmp_path}: " in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main("--out", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith("error: no CUDA GPU: ")
    assert not (tmp_path / "out").exists()


def test_results_of_something_else_are_left_alone(tmp_path):
    plan, real = Plan(tmp_path, 1, rehearse=True), Plan(tmp_path, 1)
    machine = {"gpu": "G", "torch": "2.11", "commit": "a" * 40, "driver": "1"}
    Record("ops", real, machine).put("x", Outcome(DONE, result={"y": 1}))
    before = (tmp_path / "ops.json").read_bytes()
    for other, where, said in (
        (plan, machine, "holds real figures"),
        (real, machine | {"gpu": "H"}, "is of gpu G, not H"),
        (real, machine | {"torch": "2.13"}, r"is of torch 2\.11, not 2\.13"),
    ):
        with pytest.raises(UserError, match=said):
            Record("ops", other, where)
    assert (tmp_path / "ops.json").read_bytes() == before
    again = Record("ops", real, machine | {"commit": "b" * 40})
    assert again.found["machine"]["commit"] == f"{'a' * 40}, {'b' * 40}"
    assert again.found["machine"]["driver"] == "1" and again.results == {"x": {"y": 1}}
    again.put("z", Outcome(DONE))
    assert [case["run"] for case in again.cases.values()] == [0, 1]
    assert "commit aaaaaaa and bbbbbbb" in load(tmp_path / "ops.json").title
    (tmp_path / "ops.json").write_text("[]")
    with pytest.raises(UserError, match="is not of this suite"):
        Record("ops", real, machine)


def test_reports_of_pytest_are_counted():
    xml = (
        '<testsuites><testsuite><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure>long text</failure></testcase>'
        '<testcase classname="a" name="d"><error>E</error></testcase>'
        '<testcase classname="a" name="e"><skipped/></testcase></testsuite></testsuites>'
    )
    found = counted(xml)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["failures"][0] == {"test": "a::c", "text": "long text"}


def test_joined_machines():
    old, new = {"a": 1, "b": None, "c": "x"}, {"a": 1, "b": 2, "c": "y", "d": 3}
    assert record._joined(old, new) == {"a": 1, "b": 2, "c": "x, y", "d": 3}


@pytest.mark.slow
def test_the_whole_rehearsed(tmp_path, capsys):
    """Every part from end to end; its results are read, drawn and refused."""
    out = tmp_path / "out"
    assert main("--out", str(out), "--rehearse") == 0
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines() if line.startswith("== ")] == [
        f"== {part}" for part in cases.PARTS
    ]
    assert told.rstrip().endswith("is a figure") and "left out" not in told
    names = {path.name for path in out.iterdir()}
    assert {f"{part}.json" for part in cases.PARTS} | {"probes.json"} < names and len(names) < 16
    assert {"ladder.png", "dcgan.png", "train.png", "train-samples.png"} < names
    assert max(path.stat().st_size for path in out.iterdir()) < 2**24
    for path in out.glob("*.json"):
        with pytest.raises(UserError, match="a rehearsal on a CPU"):
            load(path)
    found = load(out / "ladder.json", rehearsal=True)
    assert [len(rows) for rows in found.ladders.values()] == [3, 3] and len(found.steps) == 6
    assert load(out / "ops.json", rehearsal=True).ops
    assert main("--out", str(out), "--rehearse") == 0, "again, with nothing left to do"
    assert "ladder: 0 of 8 cases" in capsys.readouterr().out
