"""python -m bench.report: recorded figures read, drawn, put into tables and compared."""

import builtins
import json
from pathlib import Path

import pytest
from PIL import Image

from bench import plots, recorded, report
from bench.probes.convs import LAYERS
from bench.recorded import Timing, load
from fastcyclegan import command
from fastcyclegan.errors import UserError
from house_rules import ROOT

RESULTS = ROOT / "bench/results"
MACHINE = {"cpu": "Some CPU", "cores": 2, "torch": "2.13.0", "commit": "a" * 40, "date": "today"}


def op_file(us: float = 10.0, spread: float = 0.1, **row) -> dict:
    times = {"median": us, "p10": us * (1 - spread), "p90": us * (1 + spread), "n": 15}
    key = {"case": "2x4x8x8-bfloat16-relu", "provider": "triton", "mode": "fwd_bwd"}
    figures = {"us": times, "counted_bytes": 4096, "of_copy": 0.5, "error": {"y": 0.0}}
    rows = [key | figures | row]
    return {"op": "instance_norm", "machine": MACHINE, "copy_GB_per_s": 100.0, "rows": rows}


def ladder_file(*seconds: float) -> dict:
    rows = [
        {"name": f"way {i}", "group": "step, 64 px, cpu", "interleaved_median_seconds": s}
        for i, s in enumerate(seconds)
    ]
    return {"machine": MACHINE, "note": "", "rows": rows}


def pytest_file() -> dict:
    """As pytest-benchmark writes it, with what bench/conftest.py adds."""
    ceilings = {"copy_GB_per_s": 12.0, "matmul_TFLOP_per_s": {"float32": 0.1, "bfloat16": 0.2}}
    stats = {"median": 0.5, "q1": 0.4, "q3": 0.6, "rounds": 5}
    op = op_file()["rows"][0]
    case, mode = op["case"], op["mode"]
    benches = [
        {
            "name": "bench_small_step[fused fp32 eager]",
            "param": "fused fp32 eager",
            "group": "step, 64 px, cpu",
            "extra_info": {"interleaved_median_seconds": 0.25},
        },
        {
            "name": "bench_instance_norm[x]",
            "param": f"{case}-triton-{mode}",
            "group": f"op, instance_norm, {mode}, {case}, cpu",
            "extra_info": {k: op[k] for k in ("us", "counted_bytes", "of_copy")},
        },
        {"name": "bench_decode", "param": None, "group": "data, decode", "extra_info": {}},
    ]
    info = {"schema": "fastcyclegan/bench/1", "fastcyclegan": MACHINE | ceilings}
    return {"machine_info": info, "benchmarks": [b | {"stats": stats} for b in benches]}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_what_is_recorded_here_can_be_read():
    files = [path for path in RESULTS.glob("*/*.json")]
    found = {path.name: load(path) for path in files}
    assert {"ops.json", "probes.json", "ladder.json"} <= found.keys()
    assert len(found["ops.json"].ops) == 138 and found["ops.json"].copy_GB_per_s == 4298.5
    convolutions = {op.case for op in found["probes.json"].ops}
    assert len(convolutions) > 2 * len(LAYERS) and found["probes.json"].matmul_TFLOP_per_s > 700
    assert [len(rows) for rows in found["ladder.json"].ladders.values()] == [7, 7]
    assert "commit f967ae5" in found["ops.json"].title


def test_a_run_of_pytest_is_read(tmp_path):
    found = load(write(tmp_path / "tests.json", pytest_file()))
    assert found.ladders == {"step, 64 px, cpu": {"fused fp32 eager": Timing(0.25)}}
    (op,) = found.ops
    assert (op.op, op.provider, op.mode, op.bytes) == ("instance_norm", "triton", "fwd_bwd", 4096)
    times = op.time.median, op.time.low, op.time.high
    assert times == pytest.approx((1e-5, 9e-6, 1.1e-5))
    assert found.others == {"data, decode: bench_decode": Timing(0.5, 0.4, 0.6)}
    assert (found.copy_GB_per_s, found.matmul_TFLOP_per_s) == (12.0, 0.2)


def test_the_noise_of_what_was_timed_more_than_once():
    """As it says of itself; quartiles of its rounds; nothing of fewer, and then per image."""
    few = {"median": 8.0, "q1": 7.0, "q3": 9.0, "rounds": 1}
    itself = {"seconds_of_one": {"median": 0.1, "p10": 0.09, "p90": 0.2, "n": 20}}
    steps = {"interleaved_seconds": {"median": 0.3, "p10": 0.2, "p90": 0.4}}
    steps |= {"interleaved_median_seconds": 0.3}
    infos = [{}, {"img_per_s": 4.0}, itself, steps]
    rows = [
        {"group": "g", "name": str(i), "param": None, "extra_info": info, "stats": few}
        for i, info in enumerate(infos)
    ]
    rows.append(rows[1] | {"name": "4", "stats": few | {"rounds": 5}})
    ladders, _, others = recorded.from_benchmarks(rows)
    assert ladders == {"g": {"3": Timing(0.3, 0.2, 0.4)}}
    found = [others[f"g: {i}"] for i in (0, 1, 2, 4)]
    assert found == [
        Timing(8.0),
        Timing(0.25),
        Timing(0.1, 0.09, 0.2),
        Timing(8.0, 7.0, 9.0),
    ]


def test_counted_work():
    case = "2x4x8x8-bfloat16-relu"
    assert recorded.norm_flops(case, "fwd_bwd") == 19 * 2 * 4 * 8 * 8
    trunk = next(layer for layer in LAYERS if layer.name == "G 3x3 256->256 valid")
    values = 2 * (256 * 66 * 66 + 256 * 64 * 64) + 256 * 256 * 9
    assert recorded.conv_bytes(trunk, 2) == 2 * values


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "not the results of a bench, or of another schema"),
        ({"rows": []}, "not the results of a bench, or of another schema"),
        ({"machine": {}, "rows": [{"group": "g"}]}, "results of another schema ("),
        ({"machine": "x", "rows": []}, "another schema (ValueError(\"the machine 'x' is no JSON"),
        (ladder_file("0.5"), "another schema (ValueError(\"'0.5' is no number\"))"),
        (ladder_file(0.0), "another schema (ValueError('a time of 0.0 s'))"),
        (op_file(of_copy="x"), "another schema (ValueError(\"'x' is no number\"))"),
        (op_file(us=float("nan")), "another schema (ValueError('nan is no number'))"),
        (
            {"machine": MACHINE, "rows": [{"name": "train", "img_per_s": 0}]},
            "another schema (ZeroDivisionError('division by zero'))",
        ),
        ({"machine_info": {}, "benchmarks": []}, "results of another schema ("),
        (
            pytest_file() | {"machine_info": {"schema": "fastcyclegan/bench/2"}},
            "another schema (KeyError('machine_info.schema fastcyclegan/bench/1') is missing)",
        ),
    ],
)
def test_results_of_another_schema(tmp_path, capsys, content, said):
    path = write(tmp_path / "results/gpu/x.json", content)
    with pytest.raises(UserError, match=r"x\.json") as problem:
        load(path)
    assert said in str(problem.value) and "\n" not in str(problem.value)
    readme = tmp_path / "README.md"
    readme.write_text("")
    words = ["--results", str(tmp_path / "results"), "--readme", str(readme)]
    assert command.run(report.main, words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pictures_and_tables(tmp_path, capsys):
    folder = tmp_path / "results/cpu"
    write(folder / "ladder.json", ladder_file(0.4, 0.5, 0.1, 0.05))
    write(folder / "ops.json", op_file())
    readme = tmp_path / "README.md"
    before = "a\n<!-- bench cpu ladder -->\nold\n<!-- end -->\nb\n"
    readme.write_text(before + "<!-- bench cpu ops -->\n<!-- end -->\n")
    words = ["--results", str(tmp_path / "results"), "--readme", str(readme)]
    assert command.run(report.main, words) == 0
    for name in ("ladder.png", "roofline.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 20
    text = readme.read_text()
    assert text.startswith("a\n<!-- bench cpu ladder -->\n| | 64 px |\n") and "old" not in text
    assert "| way 2 | 0.100 s, 4.00x |\n| way 3 | 50.0 ms, 8.00x |" in text
    assert "Some CPU, 2 cores, torch 2.13.0, commit aaaaaaa, today." in text
    assert "| instance_norm 2x4x8x8-bfloat16-relu | 10 | 50% |" in text
    assert command.run(report.main, [*words, "--no_plots"]) == 0
    assert readme.read_text() == text


def test_the_order_of_a_waterfall(tmp_path, monkeypatch):
    """By time on a CPU; the ladder's own on a GPU, where "+ kernels" is beyond the row above it."""
    drawn = []
    monkeypatch.setattr(plots, "_steps", lambda axes, group, seconds: drawn.append([*seconds]))
    content = ladder_file(0.4, 0.1, 0.3, 0.2)
    for machine in (MACHINE, MACHINE | {"gpu": "Some GPU"}):
        path = write(tmp_path / "ladder.json", content | {"machine": machine})
        plots.waterfall(load(path), tmp_path / "ladder.png")
    assert drawn == [["way 0", "way 2", "way 3", "way 1"], [f"way {i}" for i in range(4)]]


def test_times_with_a_cold_cache_have_a_column(tmp_path):
    content = op_file()
    rows = content["rows"]
    rows[0]["cold_us"] = {"median": 14.0, "p10": 13.0, "p90": 15.0, "n": 5}
    rows.append(op_file(case="1x4x8x8-bfloat16-relu")["rows"][0])
    ((_, table),) = report.tables([load(write(tmp_path / "ops.json", content))])
    assert table.splitlines()[0] == "| us | triton | of a copy | triton, cold L2 |"
    assert "| instance_norm 2x4x8x8-bfloat16-relu | 10 | 50% | 14 |" in table
    assert "| instance_norm 1x4x8x8-bfloat16-relu | 10 | 50% |  |" in table


def test_an_op_that_several_files_have_is_that_of_the_first(tmp_path):
    files = {"a": op_file(us=10.0), "b": op_file(us=30.0), "c": op_file(us=20.0, provider="ref")}
    recordings = [load(write(tmp_path / f"{name}.json", file)) for name, file in files.items()]
    ((_, table),) = report.tables(recordings)
    assert "| instance_norm 2x4x8x8-bfloat16-relu | 10 | 20 | 50% |" in table


def suite_file(*rows: tuple[str, int, float]) -> dict:
    """As the suite writes a ladder: (row, batch, ms)."""
    found = {}
    for name, batch, ms in rows:
        step = {
            "row": name,
            "group": f"step, 256 px, ngf 64, batch {batch}, cuda:0",
            "batch": batch,
        }
        step |= {"ms": {"median": ms, "p10": ms * 0.99, "p90": ms * 1.01, "n": 30}}
        step |= {"host_ms": {"median": 0.1234}, "kernels": 512.0, "peak_GiB": 3.5}
        found[f"{name}, batch {batch}"] = {"state": "done", "result": step}
    machine = MACHINE | {"gpu": "NVIDIA X1"}
    return {"schema": recorded.SUITE_SCHEMA, "rehearsal": False, "machine": machine, "cases": found}


def test_the_table_of_a_gpu(tmp_path):
    """In the place of the sentence that there is none, and gone with the results."""
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text("a\n<!-- bench gpu ladder -->\n<!-- end -->\nb\n")
    words = ["--results", str(results), "--readme", str(readme), "--no_plots"]
    results.mkdir()
    assert command.run(report.main, words) == 0
    assert "has not been measured on a GPU yet" in readme.read_text()
    rows = [("theirs", 1, 40.0), ("ours", 1, 5.0), ("theirs", 8, 200.0), ("ours", 8, 50.0)]
    path = write(results / "x1/ladder.json", suite_file(*rows, ("alone", 16, 99.0)))
    assert load(path).timings()["step, 256 px, ngf 64, batch 1, cuda:0: ours"].median == 0.005
    assert command.run(report.main, words) == 0
    text = readme.read_text()
    assert "not been measured" not in text and text.startswith("a\n") and text.endswith("\nb\n")
    assert "| | batch 1 | batch 8 | batch 16 | kernels | host | memory |" in text
    assert "| ours | 5.00 ms, 8.00x | 50.0 ms, 4.00x |  | 512 | 0.123 ms | 3.50 GiB |" in text
    assert "| alone |  |  | 99.0 ms |  |  |  |" in text
    assert "NVIDIA X1, torch 2.13.0, commit aaaaaaa, today." in text
    write(path, suite_file(*rows) | {"rehearsal": True})
    assert command.run(report.main, words) == 2 and readme.read_text() == text


def test_readme_holds_the_tables_of_what_is_recorded(tmp_path):
    """The committed README is what the command makes of the committed results."""
    copy = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    copy.write_text(text, encoding="utf-8")
    assert command.run(report.main, ["--readme", str(copy), "--no_plots"]) == 0
    assert copy.read_text(encoding="utf-8") == text and "<!-- bench" in text


def test_a_marker_without_end(tmp_path):
    with pytest.raises(UserError, match="has no <!-- end -->"):
        report.put("<!-- bench cpu ladder -->\n", "cpu ladder", "x")


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    write(tmp_path / "results/cpu/ladder.json", ladder_file(1.0, 0.5))
    (tmp_path / "README.md").write_text("")
    monkeypatch.setattr(builtins, "__import__", without)
    words = ["--results", str(tmp_path / "results"), "--readme", str(tmp_path / "README.md")]
    assert command.run(report.main, words) == 2
    assert (
        """matplotlib is not installed: pip install -e ".[plot]", or --no_plots"""
        in capsys.readouterr().err
    )
    assert command.run(report.main, [*words, "--no_plots"]) == 0


def test_probes_without_some_or_with_rows_that_have_no_figures(tmp_path):
    """What ran out of time, what failed, and a convolution that did: the others are read."""
    machine = MACHINE | {"probes_sha256": "c", "gpu": "Some GPU"}
    only = {"machine": machine, "norm_gradients": {"rows": 3}, "ceilings": {"error": "boom"}}
    found = load(write(tmp_path / "a.json", only))
    assert found.ops == [] and found.copy_GB_per_s is None
    all_of_it = json.loads((RESULTS / "nvidia-h200/probes.json").read_bytes())
    before = load(write(tmp_path / "b.json", all_of_it))
    rows = all_of_it["convs_first"]["rows"]
    rows.insert(0, {"layer": rows[0]["layer"], "N": 2, "error": "out of memory"})
    found = load(write(tmp_path / "b.json", all_of_it))
    assert found.ops == before.ops and len(found.ops) > 100
    all_of_it["convs_first"] = {"skipped": "out of time"}
    assert 0 < len(load(write(tmp_path / "b.json", all_of_it)).ops) < len(before.ops)
