"""Shared by all tests: skipping without a GPU, and no skip that nobody knows about."""

import os
import signal
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--check-skips``."""
    parser.addoption(
        "--check-skips",
        action="store_true",
        help="fail when a test is skipped that tests/allowed_skips.txt does not list",
    )


def pytest_configure() -> None:
    """What a test begins, another pytest among it, has no options of this one."""
    os.environ.pop("PYTEST_ADDOPTS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``cuda`` where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch  # only now: most selections of tests start faster without it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def allowed_patterns(text: str) -> list[tuple[str, str]]:
    """Parse lines ``test id | reason`` (both shell patterns); ``#`` starts a comment line."""
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.split("|") for line in lines if line and not line.startswith("#")]
    return [(nodeid.strip(), reason.strip()) for nodeid, reason in pairs]


def _skips(config: pytest.Config) -> list[tuple[str, str]]:
    """Test id and reason of everything skipped so far, in the order of the run."""
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    reports = [report for key, found in stats.items() if "skipped" in key for report in found]
    return [(report.nodeid, report.longrepr[2].removeprefix("Skipped: ")) for report in reports]


def _unlisted(config: pytest.Config) -> list[tuple[str, str]]:
    allowed = allowed_patterns(ALLOWED_SKIPS.read_text(encoding="utf-8"))
    return [
        (nodeid, reason)
        for nodeid, reason in _skips(config)
        if not any(fnmatchcase(nodeid, a) and fnmatchcase(reason, b) for a, b in allowed)
    ]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a green run red when it skipped a test that the list does not name."""
    config = session.config
    if config.option.check_skips and exitstatus == pytest.ExitCode.OK and _unlisted(config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """List the skipped tests that ``--check-skips`` refuses."""
    unlisted = _unlisted(config) if config.option.check_skips else []
    if unlisted:
        terminalreporter.section(f"skips that {ALLOWED_SKIPS.name} does not list", red=True)
    for nodeid, reason in unlisted:
        terminalreporter.write_line(f"{nodeid} | {reason}")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with two small domains in ``data``."""
    from tiny_runs import make_images

    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "data/trainA", 5, seed=1)
    make_images(tmp_path / "data/trainB", 3, seed=2)
    return tmp_path


@pytest.fixture(autouse=True)
def no_echo(monkeypatch) -> None:
    """No test waits for what may follow a signal, but those of that."""
    monkeypatch.setattr("fastcyclegan.runs.signals.ECHO", 0.0)


@pytest.fixture
def at(monkeypatch):
    """What happens in the steps of these numbers, once each: SIGTERM, or images of Inf."""
    from fastcyclegan.steps.cyclegan import STEPS

    fused, plans = STEPS["fused"], {"stop": [], "spoil": []}

    def step(model, real_A, real_B, number):
        due = {plan for plan, steps in plans.items() if steps and int(number[0]) == steps[0]}
        for plan in due:
            plans[plan].pop(0)
        if "stop" in due:
            signal.raise_signal(signal.SIGTERM)
        return fused(model, real_A * float("inf") if "spoil" in due else real_A, real_B, number)

    monkeypatch.setitem(STEPS, "fused", step)
    return plans


@pytest.fixture
def deterministic(monkeypatch) -> Iterator[None]:
    """Only operations that give the same bits again."""
    import torch

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
