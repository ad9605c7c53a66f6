"""File names of any bytes, links in circles and many files: from the folder to every output."""

import json
import os
import time
from pathlib import Path

import pytest

from fastcyclegan import command, translate
from fastcyclegan.data import images
from fastcyclegan.data.scan import scan_folder
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps.cyclegan import STEPS
from tiny_runs import run_on_data

NAMES = [b"with space.png", "schön-漢字-🐴.png".encode(), b"line\nbreak.png", b"\xff\xfe.png",
         b"-rf.png", b"--help.png", b"<img src=x onerror=alert(1)>.png", b"%s{0}$HOME`id`.png",
         b"tab\t'\".png", "\u202egnp.exe.png".encode(), b"a;b&c|d.png"]  # fmt: skip


def put(folder: Path, name: bytes, content: bytes) -> None:
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(content)


@pytest.fixture
def odd(here):
    """Domain A with these names, one file of each kind of damage among them, and links."""
    folder = here / "data/trainA"
    content = (folder / "0.png").read_bytes()
    for file in list(folder.iterdir()):
        file.unlink()
    for name in NAMES:
        put(folder, name, content)
        put(folder, b"bad-" + name.replace(b"-", b"_"), b"no image")
    (folder / "loop").symlink_to(folder)
    (folder / "round").symlink_to("round")
    (folder / "circle.png").symlink_to("circle.png")
    return here


def test_training_names_them_in_whole_lines(odd, monkeypatch, capsys):
    """In its data, in quarantine.jsonl, in the events of skipped steps and their repros."""
    fused = STEPS["fused"]
    monkeypatch.setitem(STEPS, "fused", lambda m, a, b, n: fused(m, a * float("nan"), b, n))
    words = ["--max_bad", "0.9", "--steps", "11", "--serial_batches", "--max_skips", "99"]
    assert run_on_data(*words, "--save_every_steps", "99") == 0
    root = odd / "checkpoints/0001"
    rows = [json.loads(line) for line in (root / "quarantine.jsonl").read_bytes().splitlines()]
    assert len(rows) == len(NAMES) + 1
    assert {os.fsencode(row["path"]).endswith(b"circle.png") for row in rows} == {True, False}
    events = [row for row in read_metrics(root / "metrics.jsonl") if "names" in row]
    assert {os.fsencode(event["names"]["A"][0]) for event in events} == set(NAMES)
    assert all(json.loads(path.read_text()) for path in root.glob("repro-*/repro.json"))
    captured = capsys.readouterr()
    text = (captured.out + captured.err).encode("utf-8", "backslashreplace")
    assert b"line\\nbreak.png" in text and b"\nbreak.png" not in text
    assert captured.out.isascii() or captured.out.replace("\n", "").isprintable()


def test_translate_gives_each_its_own_output_inside_the_folder(odd, capsys):
    assert run_on_data("--max_bad", "0.9", "--steps", "1", "--name", "mine") == 0
    words = ["--weights", "checkpoints/mine", "--input", "data/trainA", "--output", "out"]
    before = {path for path in odd.rglob("*") if "out" not in path.parts}
    assert command.run(translate.main, [*words, "--device", "cpu"]) == 0
    assert set(os.listdir(os.fsencode(odd / "out"))) == set(NAMES)
    assert {path for path in odd.rglob("*") if "out" not in path.relative_to(odd).parts} == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(NAMES) + 1 and all(line.isprintable() for line in lines)


@pytest.mark.slow
def test_ten_thousand_files_are_scanned_by_their_headers_alone(tmp_path, monkeypatch):
    """One look at each file, no picture decoded, in a fraction of the ten seconds allowed."""
    images.write_image(tmp_path / "0.png", images.np.zeros((64, 64, 3), images.np.uint8))
    content = (tmp_path / "0.png").read_bytes()
    for i in range(1, 10_000):
        (tmp_path / f"{i}.png").write_bytes(content)
    looked = []
    check = images._check_file
    monkeypatch.setattr(images, "_check_file", lambda p: (looked.append(p), check(p)))
    monkeypatch.setattr(images.Image.Image, "load", lambda self: pytest.fail("decoded"))
    started = time.perf_counter()
    found = scan_folder(tmp_path)
    seconds = time.perf_counter() - started
    assert len(found.files) == 10_000 == len(looked) == len(set(looked))
    assert seconds < 10
