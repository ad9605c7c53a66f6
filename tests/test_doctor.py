"""python -m fastcyclegan.doctor: what it finds here, and what it says of poorer machines."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from fastcyclegan import command, diagnosis, doctor, op_checks
from fastcyclegan.diagnosis import FAIL, NOTE, OK, Item
from fastcyclegan.errors import UserError
from fastcyclegan.kernels.instance_norm import instance_norm_ref
from fastcyclegan.steps.compilation import require_kernels
from house_rules import ROOT

CPU = torch.device("cpu")
NAMES = "python packages torch triton gpu bf16 compiler disk ops kernels step torch's instance norm"


def look_away(monkeypatch, *names: str) -> None:
    """From what takes seconds."""
    for name in names:
        item = Item(name.strip("_"), OK, "not looked at")
        monkeypatch.setattr(diagnosis, name, lambda device, item=item: item)


@pytest.fixture
def quick(monkeypatch):
    look_away(monkeypatch, "_ops", "_kernels", "_step")


def examined(**changed) -> dict[str, Item]:
    items = diagnosis.examine(**({"device": "cpu", "place": Path("checkpoints")} | changed))
    return {item.name: item for item in items}


def test_here_training_would_run(here, capsys):
    """The whole command, as a user runs it."""
    assert command.run(doctor.main, ["--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    found = [line for line in out if line[:4].strip() in (OK, NOTE, FAIL)]
    assert " ".join(line[6:].split(":")[0] for line in found) == NAMES
    assert out[-1] == "training would run"
    lines = {line[6:].split(":")[0]: line for line in found}
    assert lines["torch"].startswith(f"ok    torch: {torch.__version__.partition('+')[0]}, built")
    for op in op_checks.OPS:
        assert op in lines["ops"] and op in lines["kernels"]
    assert "two steps of a small training" in lines["step"]
    assert list(here.iterdir()) == [here / "data"]


def test_json(quick, capsys):
    assert command.run(doctor.main, ["--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trains"] is True and [i["name"] for i in told["items"]][:3] == NAMES.split()[:3]
    assert all(set(i) == {"name", "verdict", "found", "mend"} for i in told["items"])


def test_a_failure_is_told_with_its_remedy_and_the_code(quick, monkeypatch, capsys):
    bad = Item("step", FAIL, "losses are not finite", "please report this")
    monkeypatch.setattr(diagnosis, "_step", lambda device: bad)
    assert command.run(doctor.main, ["--device", "cpu"]) == 2
    out = capsys.readouterr().out
    assert "fail  step: losses are not finite\n      please report this\n" in out
    assert out.endswith("training would not run: step\n")
    assert command.run(doctor.main, ["--device", "cpu", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["trains"] is False


def without(*missing: str, **versions: str) -> Callable[[str], str]:
    def version(package: str) -> str:
        if package in missing:
            raise metadata.PackageNotFoundError(package)
        return versions.get(package) or real(package)

    real = metadata.version
    return version


def test_packages_that_will_not_do(quick, monkeypatch):
    """Missing, older than setup.py has it, and there but broken."""
    monkeypatch.setattr(metadata, "version", without("safetensors", nvtx="0.2.9"))
    monkeypatch.setitem(diagnosis.MODULES, "rich", "no.such.module")
    item = examined()["packages"]
    assert item.verdict == FAIL
    assert item.found.startswith("nvtx 0.2.9 is too old; safetensors is missing; rich ")
    assert item.found.endswith("cannot be imported (No module named 'no')")
    assert item.mend == 'pip install --upgrade "nvtx>=0.2.12" "safetensors>=0.5" "rich>=13.7"'


def test_the_oldest_packages_are_those_of_setup():
    found = {k: diagnosis._dotted(v) for k, v in diagnosis.PACKAGES.items()}
    found |= {"torch": diagnosis._dotted(diagnosis.TORCH)}
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    listed = re.search(r"^INSTALL = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    floors = dict(re.findall(r"""["'](\w+)>=([\d.]+)""", listed))
    assert floors.pop("triton") and floors == found
    python = re.search(r'python_requires=">=([\d.]+)"', text)[1]
    assert python == diagnosis._dotted(diagnosis.PYTHON)


WANTS = ["triton == 3.7.1 ; x"]


@pytest.mark.parametrize(
    ("on_gpu", "installed", "requires", "verdict", "said", "mend"),
    [
        (False, None, [], NOTE, "a CPU runs the references", "pip install triton"),
        (False, "3.6.0", WANTS, NOTE, "wants 3.7.1: a CPU runs", "pip install triton==3.7.1"),
        (True, None, WANTS, FAIL, "not installed", "pip install triton==3.7.1"),
        (True, "3.6.0", WANTS, FAIL, "wants 3.7.1", "pip install triton==3.7.1"),
        (True, "3.7.1", WANTS, OK, "the one that torch wants", ""),
        (False, "3.7.1", ["numpy"], OK, "3.7.1", ""),
    ],
)
def test_triton_against_torch(monkeypatch, on_gpu, installed, requires, verdict, said, mend):
    """A training on a CPU does not need it, whatever torch was built for."""
    monkeypatch.setattr(diagnosis, "_broken", lambda module, version: "")
    monkeypatch.setattr(metadata, "requires", lambda package: requires)
    given = {"triton": installed} if installed else {}
    monkeypatch.setattr(metadata, "version", without(*([] if installed else ["triton"]), **given))
    item = diagnosis._triton(on_gpu)
    assert (item.verdict, item.mend) == (verdict, mend) and said in item.found


def test_a_triton_that_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda package: [])
    monkeypatch.setattr(metadata, "version", without(triton="3.7.1"))
    monkeypatch.setitem(sys.modules, "triton", None)
    items = [diagnosis._triton(on_gpu) for on_gpu in (False, True)]
    assert [item.verdict for item in items] == [NOTE, FAIL]
    assert all(item.mend == "pip install --force-reinstall triton" for item in items)


def test_whatever_is_missing_every_item_has_a_verdict(tmp_path):
    """The command in a process, and processes of its own, that can import neither of two."""
    for name in ("nvtx", "triton"):
        text = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
        (tmp_path / f"{name}.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "fastcyclegan.doctor", "--device", "cpu", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == ""
    told = json.loads(done.stdout)
    assert told["trains"] is False
    items = {item["name"]: Item(**item) for item in told["items"]}
    assert " ".join(items) == NAMES
    assert "nvtx 0" in items["packages"].found and items["packages"].verdict == FAIL
    assert items["triton"].verdict == items["kernels"].verdict == NOTE
    assert items["step"].found == "ModuleNotFoundError: No module named 'nvtx'"
    assert items["step"].mend == "see packages above"
    assert items["ops"].verdict == OK


def test_without_torch_it_stops_there(monkeypatch):
    bad = Item("torch", FAIL, "cannot be imported: No module named 'torch'", "pip install torch")
    monkeypatch.setattr(diagnosis, "_torch", lambda: bad)
    assert list(examined()) == ["python", "packages", "torch"]


def test_an_old_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1")
    assert diagnosis._torch().verdict == FAIL and "2.11" in diagnosis._torch().mend
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    assert diagnosis._torch().verdict == OK


def test_a_device_that_is_not_there(quick):
    item = examined(device="cuda:99")["device"]
    assert item.verdict == FAIL and "--device cuda:99" in item.found


@pytest.mark.parametrize("device", ["banana", "cuda:x", "mps"])
def test_a_device_that_is_none(quick, device):
    """Nothing has to be installed; what does not depend on a device is looked at."""
    items = examined(device=device)
    assert items["device"].mend == "give --device auto, cpu, cuda or cuda:N"
    assert list(items)[-2:] == ["device", "disk"] and items["triton"].verdict != FAIL


def test_a_number_that_no_gpu_has(quick, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert examined(device="cuda:2")["device"].mend == "give --device cuda:N with N below 2"


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        (None, "13.0", "no NVIDIA driver answers (nvidia-smi): install one"),
        ("580.1", None, "torch is built for CPUs, the driver is 580.1: install a build of torch"),
        ("470.1", "13.0", "torch is built for CUDA 13.0, the driver is 470.1: install a build"),
    ],
)
def test_why_torch_sees_no_gpu(quick, monkeypatch, driver, cuda, said):
    monkeypatch.setattr(diagnosis, "_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    item = examined(device="cuda")["device"]
    assert item.mend.startswith(said) and item.mend.endswith("or give another --device")


def test_a_driver_without_a_gpu_for_torch(monkeypatch):
    monkeypatch.setattr(diagnosis, "_driver", lambda: "580.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    item = diagnosis._gpu(CPU)
    assert item.verdict == NOTE and "driver 580.1, but torch is built for CPUs" in item.found


def test_no_compiler(monkeypatch):
    monkeypatch.setattr("fastcyclegan.steps.compilation.shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    item = diagnosis._compiler(CPU)
    assert (item.verdict, item.mend) == (NOTE, "install g++")
    assert item.found == "no C++ compiler found: --compile will run eager"


def test_no_compiler_for_the_kernels(monkeypatch):
    """The training refuses to start there too."""
    monkeypatch.setattr("fastcyclegan.steps.compilation.shutil.which", lambda name: None)
    monkeypatch.setattr("fastcyclegan.steps.compilation.find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    item = diagnosis._compiler(torch.device("cuda"))
    assert item.verdict == FAIL
    assert item.found == "no C compiler found: the kernels cannot be compiled"
    assert item.mend == "install gcc; or train with --impl reference, which is slower"
    with pytest.raises(UserError, match="no C compiler found"):
        require_kernels(torch.device("cuda"), "--impl reference")


@pytest.mark.parametrize(("gib", "verdict"), [(10, OK), (1, NOTE), (0.1, FAIL)])
def test_disk(monkeypatch, tmp_path, gib, verdict):
    class Usage:
        free = int(gib * 2**30)

    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: Usage)
    assert diagnosis._disk(tmp_path / "not/there").verdict == verdict


def test_a_place_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    assert diagnosis._disk(tmp_path / "f").verdict == FAIL


def test_an_op_that_is_wrong_is_named(monkeypatch):
    """A reference whose gradient is off by a thousandth."""
    right = op_checks.OPS["reflection_pad"]

    def wrong(x, impl):
        y, dx = right(x, impl)
        return [y, dx * (1.001 if x.dtype == torch.float32 else 1)]

    monkeypatch.setattr(op_checks, "OPS", {**op_checks.OPS, "reflection_pad": wrong})
    item = diagnosis._ops(CPU)
    assert item.verdict == FAIL and "reflection_pad differ" in item.mend
    assert "instance_norm," not in item.mend


def test_an_op_that_computes_no_number_is_wrong():
    item = diagnosis._judged("ops", {"augment": 0.0, "image_pool": float("nan")}, "tried")
    assert item.verdict == FAIL and "image_pool differ" in item.mend


def test_a_crash_of_a_check_is_an_item(monkeypatch):
    def crash(device):
        raise RuntimeError("boom\nmore")

    item = diagnosis._guarded("step", crash, CPU)
    assert item == Item("step", FAIL, "RuntimeError: boom", "please report this")


@pytest.mark.parametrize(
    ("code", "out", "said"),
    [
        (1, "", "ImportError: no triton"),
        (0, '{"augment": 0.5, "image_pool": 0.0}', "augment 5e-01"),
        (0, "no JSON", "JSONDecodeError"),
    ],
)
def test_a_broken_interpreter_hinders_no_training(monkeypatch, code, out, said):
    """Nor does a kernel that is wrong there, as a CPU uses none."""
    done = subprocess.CompletedProcess([], code, out, "a\nImportError: no triton")
    look_away(monkeypatch, "_ops", "_step")
    monkeypatch.setattr(diagnosis.subprocess, "run", lambda *args, **options: done)
    item = examined()["kernels"]
    assert item.verdict == NOTE and said in item.found and item.mend


def test_the_interpreter_is_not_asked_for_without_triton(monkeypatch):
    monkeypatch.setattr(metadata, "version", without("triton"))
    monkeypatch.setattr(diagnosis.subprocess, "run", None)
    assert diagnosis._kernels(CPU).verdict == NOTE
    item = diagnosis._kernels(torch.device("cuda"))
    assert item == Item("kernels", OK, "run on the GPU: see ops")


@pytest.mark.parametrize(("has", "verdict"), [(True, OK), (False, NOTE)])
def test_bf16(monkeypatch, has, verdict):
    monkeypatch.setattr("fastcyclegan.device._has_bf16", lambda device: has)
    item = diagnosis._bf16(CPU)
    assert item.verdict == verdict and ("training in fp32" in item.found) is not has


def test_losses_that_are_not_finite(monkeypatch):
    from fastcyclegan.steps import cyclegan

    bad = torch.tensor([1.0, float("inf")])
    monkeypatch.setattr(cyclegan, "fused_step", lambda *given: bad)
    item = diagnosis._step(CPU)
    assert item.verdict == FAIL and item.found == "losses are not finite: [1.0, inf]"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, OK), (1.1, NOTE)])
def test_torchs_own_instance_norm(monkeypatch, factor, verdict):
    """Right ones, and ones whose gradient is a tenth too large in channels_last."""

    def norm(x):
        y = instance_norm_ref(x)
        if x.is_contiguous():
            return y
        return y.detach() + factor * (y - y.detach())

    monkeypatch.setattr(torch.nn.functional, "instance_norm", norm)
    item = diagnosis._torch_instance_norm(CPU)
    assert item.verdict == verdict and ("off by 0." in item.found) is (verdict == NOTE)


def test_this_torchs_instance_norm():
    """2.13.0 is known to have the fault; another may have mended it."""
    has_it = diagnosis._torch_instance_norm(CPU).verdict == NOTE
    assert has_it or not torch.__version__.startswith("2.13.0")
