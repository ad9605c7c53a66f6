"""The parts of the GPU suite: their cases, what is wanted most first, and their tables."""

import os

import pytest

from bench.gpu_suite import (
    counters,
    dcgan_part,
    ladder_part,
    ops_part,
    steps,
    tests_part,
    train_part,
)
from bench.gpu_suite.cases import Plan
from house_rules import ROOT
from test_gpu_suite import no_peers  # noqa: F401


def test_every_file_with_tests_for_a_gpu_is_run():
    names = list(tests_part.marked())
    files = {name.partition("::")[0] for name in names}
    for path in (ROOT / "tests").glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        used = any(
            line.startswith(("@pytest.mark.cuda", "@on_devices")) for line in text.split("\n")
        )
        assert not used or f"tests/{path.name}" in files or path.name == "test_conftest.py"
    split = [name for name in names if name.startswith("tests/test_op_contract.py::test_")]
    assert len(split) > 8 and "tests/test_op_contract.py" not in names
    assert "tests/test_capture.py" in files and "tests/test_house.py" not in files


def test_the_sanitizer_watches_op_tests(tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    named = [c.name for c in tests_part.cases(Plan(tmp_path, 1)) if c.name.startswith("memcheck")]
    assert len(named) >= 3 and any("no_other_memory" in name for name in named)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    assert not any("check " in c.name for c in tests_part.cases(Plan(tmp_path, 1)))
    assert any("not installed" in line for line in tests_part.lines({}))


METRICS = f'"{counters.READ}","{counters.WRITTEN}","{counters.TIME}"'
NCU = f"""==PROF== Connected to process 7
==PROF== Profiling "_instance_norm_stats_kernel" - 0: 0%....100% - 1 pass
"ID","Process ID","Kernel Name","Block Size",{METRICS}
"","","","","byte","byte","ns"
"0","7","_instance_norm_stats_kernel","(256, 1, 1)","16,000,000","2048","4,096"
"1","7","_instance_norm_fwd_kernel","(128, 1, 1)","16000000","17,000,000","9000"
"""


def test_bytes_that_ncu_counts(tmp_path, monkeypatch):
    program = tmp_path / "ncu"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{NCU}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    case = counters.COUNTED[0]
    assert f"ncu {case}" in [c.name for c in ops_part.cases(Plan(tmp_path, 1))]
    found = counters.count(case)
    assert [k["name"] for k in found["kernels"]][1] == "_instance_norm_fwd_kernel"
    assert found["moved"] == 49_002_048 and found["kernels"][0]["ns"] == 4096
    (line,) = ops_part.lines({"ncu": found})
    assert f"{49_002_048 / found['counted']:.2f} times the counted bytes" in line
    program.write_text("#!/bin/sh\necho no counters; exit 9\n")
    with pytest.raises(RuntimeError, match=r"exit code 9\nno counters"):
        counters.count(case)
    monkeypatch.setattr(counters, "profiler", lambda: None)
    assert not any(c.name.startswith("ncu") for c in ops_part.cases(Plan(tmp_path, 1)))


@pytest.mark.parametrize("part", [ladder_part, dcgan_part])
def test_rows_of_a_ladder(part, tmp_path, monkeypatch):
    """Names are unique, every option is one of train's, and what is wanted most comes first."""
    names = [row.name for row in part.ROWS]
    assert len(set(names)) == len(names)
    size = getattr(part, "PAPER", None) or part.SIZE
    for row in part.ROWS:
        suite_options = size.config(row, 1)
        assert suite_options.batch_size == 1 and row.precision in ("fp32", "tf32", "bf16")
    monkeypatch.setattr(ladder_part, "_gpu", lambda: "NVIDIA H200")
    found = sorted(part.cases(Plan(tmp_path, 500)), key=lambda case: case.turn)
    assert len({case.name for case in found}) == len(found)
    first = next(case.name for case in found if ", batch " in case.name)
    assert "images drawn in each step: the full step" in first
    if part is ladder_part:
        assert [c.name for c in found[:2]] == ["probe norm_gradients", "probe ceilings"]
        steps_of = [c.name for c in found if ", batch " in c.name]
        assert all(name.endswith((" 1", " 8")) for name in steps_of[: len(steps_of) // 2])
        assert "probe convs_first" not in {c.name for c in found}, "recorded of this GPU already"


def test_probes_that_are_recorded(monkeypatch):
    assert ladder_part.accepted_probes("NVIDIA H200") >= {"graph_nodes", "overlap", "peer_step"}
    assert ladder_part.accepted_probes("another") == set()


def result(row: str, batch: int, ms: float, **more) -> dict:
    spread = {"median": ms, "p10": ms * 0.9, "p90": ms * 1.1, "n": 9}
    found = {"row": row, "batch": batch, "ms": spread, "host_ms": {"median": 0.1}}
    found |= {"group": f"step, 256 px, ngf 64, batch {batch}, cuda:0", "busy_ms": 5.0}
    return found | {"kernels": 300.0, "images_per_s": 1e3 * batch / ms, "peak_GiB": 2.5} | more


def test_the_table_of_a_ladder():
    names = [row.name for row in ladder_part.ROWS]
    found = [
        result(names[1], 1, 5.0, TFLOP=1.879),
        result(names[0], 1, 20.0),
        result("old", 1, 1.0),
    ]
    found += [result(names[1], 8, 40.0)]
    told = steps.table(ladder_part.ROWS, {str(i): r for i, r in enumerate(found)}, 800.0)
    assert len(told) == 5 and told[0].startswith("batch 1") and told[3].startswith("batch 8")
    assert told[1].startswith(names[0]) and " 1.00x " in told[1]
    assert told[2].startswith(names[1]) and " 4.00x " in told[2]
    assert told[2].endswith(f"{1.879 / 0.005 / 800:.1%}")


def test_the_longest_training_that_fits(tmp_path, monkeypatch):
    """The trial's speed and start decide the steps; the pictures and figures are there."""
    made, clock = [], iter([0.0, 40.0, 40.0, 40.0, 40.0])

    def fake(recipe, steps, folder, limit):
        made.append((steps, limit))
        return folder

    figures = {"steps": 7, "epochs": 1, "img_per_s": 50.0, "losses": {}, "seen_at": []}
    monkeypatch.setattr(train_part, "run_training", fake)
    monkeypatch.setattr(train_part, "_speed", lambda root: 50.0)
    monkeypatch.setattr(train_part, "_figures", lambda root: dict(figures))
    monkeypatch.setattr(train_part, "_draw", lambda root, result, out: None)
    monkeypatch.setattr(train_part.time, "monotonic", lambda: next(clock))
    found = train_part.train(Plan(tmp_path, 500.0), tmp_path)
    begun = 40 - train_part.TRIAL / 50
    assert made[1][0] == round((500 - train_part.SPARE - 40 - begun) * 50)
    assert made[1][1] + 40 < 500 and found["seconds_to_begin"] == round(begun, 1)


def test_no_training_without_images(tmp_path, monkeypatch):
    assert train_part.cases(Plan(tmp_path, 500)) == []
    assert "FASTCYCLEGAN_DATA" in train_part.lines({})[0]
    monkeypatch.setenv("FASTCYCLEGAN_DATA", str(tmp_path))
    (tmp_path / "horse2zebra/trainA").mkdir(parents=True)
    (case,) = train_part.cases(Plan(tmp_path, 500))
    assert case.name == "horse2zebra" and case.limit == 500
