"""A skip that the list does not name fails the run; ``cuda`` tests skip without a GPU."""

import shutil
import subprocess
import sys

import pytest

from conftest import ALLOWED_SKIPS, allowed_patterns

SUITE = """
import pytest

def test_passes():
    pass

def test_known():
    pytest.skip("FASTCYCLEGAN_DATA is unset")

@pytest.mark.cuda
def test_gpu():
    import torch
    assert torch.cuda.is_available()
"""
UNKNOWN = """
def test_unknown():
    pytest.skip("did not feel like it")
"""


@pytest.fixture
def run_pytest(tmp_path):
    """Run a suite of its own under a copy of our conftest; returns exit code and output."""
    shutil.copy(ALLOWED_SKIPS.with_name("conftest.py"), tmp_path)
    shutil.copy(ALLOWED_SKIPS, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda: needs a GPU\n")

    def run(suite: str, *options: str) -> tuple[int, str]:
        (tmp_path / "test_suite.py").write_text(suite)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


def test_listed_skips_pass(run_pytest):
    code, output = run_pytest(SUITE, "--check-skips")
    assert code == 0, output
    assert "failed" not in output and "does not list" not in output


def test_unlisted_skip_fails(run_pytest):
    code, output = run_pytest(SUITE + UNKNOWN, "--check-skips")
    assert code == 1
    section = output.partition("does not list")[2]
    assert "test_suite.py::test_unknown | did not feel like it" in section
    assert "test_known" not in section


def test_without_the_option_a_skip_is_only_a_skip(run_pytest):
    code, output = run_pytest(SUITE + UNKNOWN)
    assert code == 0, output
    assert "does not list" not in output


def test_patterns_are_parsed():
    text = "# why\n\ntests/test_a.py::* | needs *\n* | never\n"
    assert allowed_patterns(text) == [("tests/test_a.py::*", "needs *"), ("*", "never")]
