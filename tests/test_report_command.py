"""python -m fastcyclegan.report: one run, several, and what it refuses."""

import pytest

from fastcyclegan import command, report
from report_runs import make_run


def run(*words: object) -> int:
    return command.run(report.main, [str(word) for word in words])


def test_one_run_gets_its_report_anew(tmp_path, capsys):
    folder = make_run(tmp_path / "mine")
    for _ in range(2):
        assert run(folder.root) == 0
    assert folder.report.read_text().startswith("<!DOCTYPE html>")
    assert capsys.readouterr().out == f"wrote {folder.report}\n" * 2
    assert sorted(p.name for p in folder.root.iterdir()) == [
        "ckpt", "config.json", "metrics.jsonl", "previews", "report.html", "weights",
    ]  # fmt: skip


def test_several_are_compared_where_one_stands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(tmp_path / name)
    assert run("a", "b") == 0
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text()
    assert not (tmp_path / "a/report.html").exists()
    assert run("a", "b") == 2
    assert "comparison.html exists: --overwrite replaces it" in capsys.readouterr().err
    assert run("--overwrite", "a", "b") == 0 and run("a", "--output", "one.html") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run is missing: run folders"),
        (["none"], "none is no run folder: it has no config.json"),
        (["a", "none"], "none is no run folder"),
        (["damaged"], "damaged/config.json cannot be read: no report of it"),
        (["a", "--output", "a/x.txt"], "--output a/x.txt: give it the suffix .html"),
        (["a", "--output", "no/x.html"], "--output no/x.html: there is no folder no"),
        (["folder"], "folder/metrics.jsonl cannot be read: Is a directory"),
        (["a", "folder"], "folder/metrics.jsonl cannot be read: Is a directory"),
        (["a"] * 17, "17 runs: at most 16"),
        (["a", "--outptu", "x"], "did you mean --output?"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("{")
    (tmp_path / "folder/metrics.jsonl").mkdir(parents=True)
    (tmp_path / "folder/config.json").write_text("{}")
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "a/report.html").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path / "mine")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_atomic", full)
    assert run(folder.root) == 2
    assert capsys.readouterr().err.endswith(
        "report.html cannot be written: No space left on device\n"
    )
