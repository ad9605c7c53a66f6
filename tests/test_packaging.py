"""Metadata and pins agree; wheel, sdist and every kind of editable install really work."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from house_rules import ROOT
from test_house import requirements

SITE = Path(sysconfig.get_path("purelib"))
NOT_COPIED = shutil.ignore_patterns(".*_cache", ".git", "__pycache__", "*.egg-info", "build")
# Spawned processes find the ops by themselves, and functions pickle under the right name.
SPAWN = """
import multiprocessing, pickle
from fastcyclegan import kernels
from fastcyclegan.kernels import philox

def draw(seed):
    import torch
    return [word.tolist() for word in philox.philox_ref(seed, 1, torch.arange(3))]

if __name__ == "__main__":
    assert pickle.loads(pickle.dumps(philox.uniform)) is philox.uniform
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(draw, (7,)) == draw(7)
        assert pool.apply(getattr, (philox.uniform, "__module__")) == "fastcyclegan.kernels.philox"
    print(kernels.__file__, philox.__file__, sep="\\n")
"""
# The templates of the report are found where the package is installed.
REPORT = """
from pathlib import Path
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.report.page import RunPage

Path("new").mkdir()
Path("new/config.json").write_text("{}")
page = RunPage(RunFolder(Path("new")))
page.refresh()
print(page.html())
"""
STRANGER = "import kernels; print(kernels.OWNER)"


def packaged_files() -> set[str]:
    """Where each source file belongs inside an installed ``fastcyclegan/``."""
    found = [p for p in (ROOT / "fastcyclegan").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    ours = {p.relative_to(ROOT).as_posix() for p in found}
    return ours | {f"fastcyclegan/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")}


def run(*words: object, cwd: Path) -> str:
    """Standard output of a command; fails with all it said when it exits non-zero."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_requirement_has_a_floor_and_a_pin_above_it():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert len(pinned) == len(pins)
    assert all(pin.startswith("==") for pin in pinned.values())
    assert (pinned["torch"], pinned["triton"]) == ("==2.13.0", "==3.7.1")
    for requirement in map(Requirement, requirements("INSTALL") + requirements("TEST")):
        [floor] = requirement.specifier
        assert floor.operator == ">="
        pin = pinned[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(pin), requirement


def test_what_is_installed_here_is_pinned():
    """Every distribution that ours needs, directly or not, has a pin."""
    from importlib.metadata import requires

    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {canonicalize_name(line.split("==")[0]) for line in text.splitlines() if "==" in line}
    queue = [Requirement(line) for line in requirements("INSTALL") + requirements("TEST")]
    needed = set()
    while queue:
        name = canonicalize_name(queue.pop().name)
        if name not in needed:
            needed.add(name)
            found = [Requirement(line) for line in requires(name) or []]
            queue += [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert needed - pinned == set()


def test_each_folder_of_the_package_is_a_package():
    folders = {path.parent for path in (ROOT / "fastcyclegan").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_runs_uninstalled_from_the_root(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{SPAWN}")
    door, philox = run(sys.executable, script, cwd=tmp_path).split()
    assert door == str(ROOT / "fastcyclegan" / "kernels.py")
    assert philox == str(ROOT / "kernels" / "philox.py")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, so that building leaves nothing in the repository."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "repo", ignore=NOT_COPIED)


@pytest.fixture(scope="module")
def built(source) -> dict[str, Path]:
    """The wheel and the sdist; the wheel is built from the sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    [wheel], [sdist] = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture
def fresh(tmp_path) -> Path:
    """Python of a new environment with our dependencies, by links, and a stranger's ``kernels``."""
    links = tmp_path / "dependencies"
    links.mkdir()
    for entry in SITE.iterdir():
        if "fastcyclegan" not in entry.name and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    [site] = (home / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{links}\n")
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("OWNER = 'stranger'\n")
    return home / "bin" / "python"


def check_installed(python: Path, folder: Path) -> tuple[Path, Path]:
    """Help, spawn, an untouched ``kernels`` of others; returns where the door and an op lie."""
    for command in ("train", "translate"):
        text = run(python, "-m", f"fastcyclegan.{command}", "--help", cwd=folder)
        assert text.startswith(f"usage: python -m fastcyclegan.{command}")
    assert run(python, "-c", STRANGER, cwd=folder).strip() == "stranger"
    assert "<h1>new</h1>" in run(python, "-c", REPORT, cwd=folder)
    script = folder / "spawn.py"
    script.write_text(SPAWN)
    door, philox = run(python, script, cwd=folder).split()
    return Path(door), Path(philox)


@pytest.mark.slow
def test_wheel_holds_the_sources_and_nothing_else(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(metadata).decode()
        licences = [n for n in wheel.namelist() if n.endswith(".dist-info/licenses/LICENSE")]
    assert names == packaged_files()
    assert "License-Expression: MIT" in text and "Requires-Python: >=3.11" in text
    assert len(licences) == 1


@pytest.mark.slow
def test_sdist_holds_what_is_needed_to_build_and_test(built):
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    report = {f"fastcyclegan/runs/report/{name}" for name in ("run.html", "page.css", "page.js")}
    kernels = {f"kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")}
    top = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    assert report | kernels | tests | top | {"tests/allowed_skips.txt"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_package_works(built, fresh, tmp_path, kind):
    pip = [sys.executable, "-m", "pip", "--python", fresh, "install", "--no-deps"]
    run(*pip, "--no-build-isolation", built[kind], cwd=tmp_path)
    door, philox = check_installed(fresh, tmp_path)
    assert door.is_relative_to(tmp_path / "venv")
    assert philox == door.parent / "kernels" / "philox.py"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lenient", "strict", "compat"])
def test_editable_install_works(source, fresh, tmp_path, mode):
    pip = [sys.executable, "-m", "pip", "--python", fresh, "install", "--no-deps"]
    config = f"editable_mode={mode}"
    run(*pip, "--no-build-isolation", "--config-settings", config, "-e", source, cwd=tmp_path)
    door, philox = check_installed(fresh, tmp_path)
    assert door.resolve() == source / "fastcyclegan" / "kernels.py"
    assert philox.resolve() == source / "kernels" / "philox.py"
