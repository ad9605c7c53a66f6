"""python -m bench.report --compare: what changed by more than runs of the same code differ by."""

import pytest

from bench import report
from bench.recorded import Timing, load
from fastcyclegan import command
from test_report import MACHINE, RESULTS, ladder_file, op_file, write


@pytest.mark.parametrize(
    ("a", "b", "changed"),
    [
        (Timing(1.0, 0.999, 1.001), Timing(1.02, 1.019, 1.021), False),
        (Timing(1.0, 0.999, 1.001), Timing(0.94, 0.939, 0.941), True),
        (Timing(1.0, 0.9, 1.1), Timing(0.7, 0.6, 0.8), True),
        (Timing(1.0, 0.9, 1.1), Timing(1.3, 1.2, 1.4), True),
        (Timing(1.0, 0.9, 1.1), Timing(0.85, 0.7, 1.0), False),
        (Timing(1.0), Timing(1.04, 1.03, 1.05), False),
        (Timing(1.0), Timing(0.94), True),
    ],
)
def test_noise(a, b, changed):
    assert report.beyond_noise(a, b, 0.05) is changed


def test_small_changes_between_two_runs_of_the_same_code(capsys):
    """On one H200: within-run ranges of a convolution are a tenth of what two runs differ by."""
    files = [RESULTS / f"nvidia-h200/{name}.json" for name in ("probes_earlier_run", "probes")]
    assert command.run(report.main, ["--compare", *map(str, files)]) == 0
    *changed, last = capsys.readouterr().out.splitlines()[2:-1]
    assert "within the noise (3%, or ranges that meet)" in last
    assert len(changed) < len(load(files[0]).ops) / 2 and not any(
        line < "1.03x" for line in changed
    )


def test_machines_that_differ(tmp_path, capsys):
    """Of other versions: told. Of a GPU and a CPU: refused, although the rows have the names."""
    a, b = op_file(), op_file(us=20.0)
    b["machine"] = MACHINE | {"torch": "2.14.0", "cpu": "Another CPU"}
    c = b | {"machine": MACHINE | {"gpu": "Some GPU"}}
    names = [str(write(tmp_path / f"{i}.json", x)) for i, x in enumerate((a, b, c))]
    assert command.run(report.main, ["--compare", *names[:2]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "warning: not the same cpu: Some CPU in A, Another CPU in B"
    assert lines[3] == "warning: not the same torch: 2.13.0 in A, 2.14.0 in B"
    for pair in (names[1:], names[:0:-1]):
        assert command.run(report.main, ["--compare", *pair]) == 2
        error = f"error: {names[2]} is of a GPU, {names[1]} of a CPU: nothing in them compares\n"
        assert capsys.readouterr().err == error


def test_compare(tmp_path, capsys):
    a = write(tmp_path / "a.json", ladder_file(1.0, 0.5, 0.1, 0.2))
    b = write(tmp_path / "b.json", ladder_file(1.01, 0.6, 0.05))
    assert command.run(report.main, ["--compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("2.00x faster  step, 64 px, cpu: way 2: 0.100 s -> ")
    assert lines[3].startswith("1.20x slower  step, 64 px, cpu: way 1: 0.500 s -> 0.600 s")
    assert lines[4] == "2 of 3 changed, 1 within the noise (5%, or ranges that meet)"
    assert lines[5] == "only in A: 1, such as step, 64 px, cpu: way 3"
    other = write(tmp_path / "c.json", op_file())
    assert command.run(report.main, ["--compare", str(a), str(other)]) == 2
    assert "have no row in common" in capsys.readouterr().err
    assert command.run(report.main, ["--compare", str(a), str(tmp_path / "no.json")]) == 2
    assert command.run(report.main, ["--wrong"]) == 2
    capsys.readouterr()
    assert command.run(report.main, ["--readme", str(tmp_path / "no.md")]) == 2
    assert capsys.readouterr().err == f"error: --readme {tmp_path}/no.md: no such file\n"
