"""Exit codes and error lines that all commands share."""

import os
import subprocess
import sys

import pytest

from fastcyclegan import command
from fastcyclegan.errors import UserError
from house_rules import ROOT


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (UserError("--x 3: no"), 2, "error: --x 3: no\n"),
        (UserError("a\nb.png: bad"), 2, "error: a\\nb.png: bad\n"),
        (PermissionError(13, "Permission denied", "hid/d"), 2, "error: hid/d: permission denied\n"),
        (command.Stop(4, "not finite"), 4, "error: not finite\n"),
        (OutOfMemoryError("CUDA out of memory.\nmore"), 3, "error: out of memory: CUDA out of"),
        (MemoryError(), 3, "error: out of memory"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_what_is_raised_becomes_a_code_and_a_line(capsys, problem, code, line):
    def main(argv):
        raise problem

    assert command.run(main, []) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(line) and captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_defect_shows_its_traceback_and_asks_for_a_report(capsys):
    def main(argv):
        raise KeyError("oops")

    assert command.run(main, []) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "please report" in err


def test_main_gets_the_words_and_gives_the_code():
    assert command.run(lambda argv: len(argv), ["a", "b"]) == 2


def test_a_reader_that_is_gone_is_no_defect():
    words = [sys.executable, "-m", "fastcyclegan.train", "--list_presets"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("world", "said"), [("1", "said\nat the end\n"), ("2", "said\n")])
def test_one_of_several_processes_ends_at_once(world, said):
    code = "import atexit; from fastcyclegan import command; atexit.register(print, 'at the end'); "
    code += "print('said'); command.leave(6)"
    place = {"RANK": "0", "WORLD_SIZE": world, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=os.environ | place, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (6, said, "")
