"""--dry_run: what it says is so, and it writes nothing."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastcyclegan import command, dry_run, memory, train
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.sampler import lies_on
from fastcyclegan.data.survey import Survey
from fastcyclegan.data.training_set import load_training_set
from fastcyclegan.device import resolve_precision
from fastcyclegan.dry_run import Plan
from fastcyclegan.steps.cost import Cost
from fastcyclegan.systems import SYSTEMS, make_system
from house_rules import ROOT
from test_train import tree
from tiny_runs import make_images, run, run_on_data

CPU = torch.device("cpu")


def test_it_tells_everything_and_writes_nothing(here, capsys):
    before = tree(here)
    assert run_on_data("--dry_run", "--n_epochs", "3", "--n_epochs_decay", "1") == 0
    assert tree(here) == before and {p.name for p in here.iterdir()} == {"data"}
    out = capsys.readouterr().out
    assert "dry run, nothing is written: resnet_1blocks ngf 4, fp32 on cpu" in out
    assert "images: 5 in domain A, 3 in domain B, by their headers" in out
    assert re.search(r"compute: [\d.]+ GFLOP per step of batch 1", out)
    assert re.search(r"memory: [\d.]+ [GM]iB at its peak: python and torch [\d.]+ [GM]iB, ", out)
    for part in ("parameters", "gradients", "Adam's moments", "image pools", "decoded images"):
        assert re.search(rf"{part} [\d.]+ MiB", out)
    assert re.search(
        r"fit: fits into the [\d.]+ [GM]iB that are free; the largest batch .* \d+", out
    )
    assert re.search(r"time: [\d.e-]+ s per step, measured over 3 steps\n", out)
    assert "for all 20 steps, without previews and saving" in out


def test_without_images_it_counts_the_toy_ones(here, capsys):
    assert run("--dry_run", "--preset", "small", "--steps", "7") == 0
    out = capsys.readouterr().out
    assert "images: 200 in domain A, 200 in domain B" in out and "for all 7 steps" in out
    assert not (here / "datasets").exists()


@pytest.mark.parametrize("preprocess", ["resize_and_crop", "none", "crop"])
def test_the_survey_is_what_a_training_decodes(here, preprocess):
    make_images(here / "data/trainA/more", 2, (64, 48))
    words = {"preprocess": preprocess, "load_size": 36, "crop_size": 32, "output_nc": 1}
    config = TrainConfig(dataroot="data", **words)
    survey = SYSTEMS["cycle_gan"].survey(config)
    images = load_training_set(config, lambda text: None)
    pair = images.set_A, images.set_B
    assert survey.images == {"A": len(pair[0]), "B": len(pair[1])} == {"A": 7, "B": 3}
    assert survey.decoded_bytes == sum(domain.pixels.numel() for domain in pair)


@pytest.mark.parametrize("where", [[], ["--dataroot", "data/trainA"]])
def test_a_dcgan(here, capsys, where):
    words = "--model dcgan --crop_size 16 --load_size 16 --ngf 4 --ndf 4 --batch_size 4 --dry_run"
    before = tree(here)
    assert command.run(train.main, [*words.split(), "--device", "cpu", *where]) == 0
    assert tree(here) == before
    out = capsys.readouterr().out
    assert f"images: {5 if where else 1024} in domain real, by their headers" in out
    assert "dry run, nothing is written: DCGAN 16x16 ngf 4" in out
    assert "s per step, measured over 3 steps" in out


def test_bad_headers_are_counted(here, capsys):
    (here / "data/trainB/x.png").write_bytes(b"no image")
    assert run_on_data("--dry_run", "--max_bad", "0.25") == 0
    assert "3 in domain B, 1 files cannot be used" in capsys.readouterr().out


ON_A_CPU = ["--profile_steps 3:5", "--cuda_graph on", "--twin_streams"]


@pytest.mark.parametrize(
    "words",
    [*ON_A_CPU, "--steps 4 --profile torch --profile_steps 900:910", "--max_bad 0.2", "--small"],
)
def test_what_a_training_refuses(here, capsys, words):
    """With the same words: a file without image of four, one smaller than the window behind more
    than are decoded, options that the device or the number of steps do not go with."""
    (here / "data/trainB/x.png").write_bytes(b"no image")
    if words == "--small":
        make_images(here / "data/trainA/z", 9)
        make_images(here / "data/trainA/zz", 1, (31, 40))
        words = "--preprocess crop --max_bad 1"
    options = ["--max_bad", "1", *words.split()]
    said = []
    for dry in ([], ["--dry_run"]):
        assert run_on_data(*options, *dry) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and said[0].startswith("error: ")


def test_what_cannot_be_captured_is_refused(here, monkeypatch, capsys):
    """As if a CPU had CUDA graphs: the training looks at that first."""
    monkeypatch.setattr("fastcyclegan.preparation.check_device", lambda config, device: None)
    monkeypatch.setattr(dry_run, "check_device", lambda config, device: None)
    assert run_on_data("--cuda_graph", "on", "--gan_mode", "wgangp", "--dry_run") == 2
    assert "--cuda_graph on: --gan_mode wgangp differentiates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [("--max_bad 0.1", "1 of 6 images"), ("--preprocess crop --crop_size 64", "smaller than")],
)
def test_what_a_dcgan_refuses(here, capsys, words, reason):
    (here / "data/trainA/x.png").write_bytes(b"no image")
    given = (
        "--model dcgan --crop_size 16 --load_size 16 --ngf 4 --ndf 4 --batch_size 4 --device cpu"
    )
    given += f" --max_bad 1 --dataroot data/trainA {words}"
    said = []
    for dry in ([], ["--dry_run"]):
        assert command.run(train.main, [*given.split(), *dry]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and reason in said[0]


def a_plan(**changed) -> Plan:
    cost = Cost(10**12, {"parameters": 20, "Adam's moments": 30, "image pools": 0}, 50)
    survey = Survey({"A": 3}, 0, 170)
    values = {"title": "", "survey": survey, "steps": 10, "batch_size": 5, "cost": cost}
    values |= {"process": 1000, "overhead": 2.0, "free": 420, "images": 170}
    return Plan(**(values | changed))


def test_fit_and_largest_batch():
    """Held 350, a checkpoint's 130 among them, and 20 per image of batch 5.

    The process's own memory is taken already.
    """
    assert a_plan().checkpoint == 130 and a_plan(process=0).checkpoint == 0
    assert a_plan().bytes == 1450 and a_plan(free=450).fits and not a_plan(free=449).fits
    assert [a_plan(free=free).largest_batch for free in (470, 449, 369, 10)] == [6, 4, 0, 0]


def test_images_in_main_memory_take_none_of_a_gpus(monkeypatch):
    """Where they are asked for there, or too many for half of what is free."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    on_gpu = [lies_on(gpu, where, n) for where in ("auto", "host", "device") for n in (500, 501)]
    assert on_gpu == [True, False, False, False, True, True]
    assert [lies_on(CPU, where, 10**12) for where in ("auto", "host")] == [True, False]
    with_them, without = a_plan(process=0), a_plan(process=0, images=0)
    assert with_them.bytes - without.bytes == 170
    lines = list(replace(without, survey=Survey({"A": 3}, 0, 2**20)).lines())
    assert "        decoded images stay in main memory: 1.0 MiB" in lines
    assert not any("main memory" in line for line in with_them.lines())


@pytest.mark.parametrize("where", ["host", "auto"])
def test_a_plan_for_a_gpu_without_room_for_the_images(here, monkeypatch, where):
    """As if there was one: what is computed with it runs on the CPU."""
    monkeypatch.setattr(dry_run, "lies_on", lambda device, data_on, needed: data_on == "device")
    monkeypatch.setattr(dry_run, "free_bytes", lambda device: 2**30)
    monkeypatch.setattr(dry_run, "check_device", lambda config, device: None)
    monkeypatch.setattr(dry_run, "make_system", lambda few, device, *r: make_system(few, CPU, *r))
    monkeypatch.setattr(dry_run, "resolve_precision", lambda text, d: resolve_precision(text, CPU))
    config = TrainConfig(netG="resnet_1blocks", ngf=4, ndf=4, load_size=36, crop_size=32)
    config = replace(config, dataroot="data", data_on=where)
    plan = dry_run.make_plan(config, torch.device("cuda"))
    assert plan.images == 0 < plan.survey.decoded_bytes
    assert dry_run.make_plan(replace(config, data_on="device"), torch.device("cuda")).images > 0


def test_what_is_loaded_to_compile_counts():
    eager, compiling = (memory.process_bytes(compiles) for compiles in (False, True))
    assert compiling - eager >= memory._COMPILED and eager > 200 * 2**20


def test_what_does_not_fit_is_said_and_not_run(here, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(dry_run, "_measured_speed", None)
    assert run_on_data("--dry_run") == 0
    out = capsys.readouterr().out
    assert "fit: does not fit: 0.0 MiB are free; the largest batch that does is about 0" in out
    assert "s per step, an estimate, as it does not fit: half the speed of one" in out


def test_what_takes_long_is_estimated(here, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "MEASURED_SECONDS", 0.0)
    assert run_on_data("--dry_run", "--compile") == 0
    assert "an estimate, too slow to be measured here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("durations", "seconds", "steps"),
    [([1.0, 0.2, 0.4, 0.3], 0.3, 3), ([2.5, 1.7, 9.0, 9.0], 1.7, 1)],
)
def test_the_time_is_the_median_behind_the_first_step(monkeypatch, durations, seconds, steps):
    """By a clock that only steps move; no more of them than fit into four seconds."""
    now, left = [0.0], list(durations)

    def step(model, number):
        now[0] += left.pop(0)
        return torch.zeros(2)

    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now[0])
    config = TrainConfig(compile=True)
    sampler = SimpleNamespace(batch=lambda index: ())
    system = SimpleNamespace(step=step, model=None, device=CPU, sampler=sampler, config=config)
    measured, how = dry_run._measured_speed(system)
    assert measured == pytest.approx(seconds) and len(left) == 3 - steps
    assert how == f"measured over {steps} steps without --compile, which is faster"


def test_wrong_options_are_refused_as_in_training(here, capsys):
    assert run("--dry_run", "--dataroot", "nowhere") == 2
    assert "--dataroot nowhere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "free"), [("max", 3 * 1024), ("5000", 4000), ("900", 0)])
def test_free_memory_heeds_the_control_group(tmp_path, monkeypatch, limit, free):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\nx: 1\n")
    assert memory.free_bytes(CPU) == 3 * 1024
    (tmp_path / "meminfo").write_text("MemAvailable: 4000 kB\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("1000")
    expected = 4000 * 1024 if limit == "max" else free
    assert memory.free_bytes(CPU) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--preset small --batch_size 4 --precision bf16",
        "--preset small --batch_size 2 --crop_size 128 --load_size 128",
        "--preset small --precision fp32 --compile",
        "--preset dcgan_small --model dcgan",
    ],
)
def test_memory_is_within_15_percent_of_the_measured_peak(here, words):
    """Of the process of a training, at the greatest that the kernel saw."""
    train = [sys.executable, "-m", "fastcyclegan.train", "--device", "cpu"]
    train += [*words.split(), "--steps", "3", "--name", "a"]
    names = "PATH", "HOME", "TORCHINDUCTOR_CACHE_DIR"
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    options = {"env": environment, "check": True, "capture_output": True, "text": True}
    said = subprocess.run([*train, "--dry_run"], **options).stdout
    number, unit = re.search(r"memory: ([\d.]+) ([GM])iB at its peak", said).groups()
    predicted = float(number) * {"G": 2**30, "M": 2**20}[unit]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "capture_output=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *train], **options)
    measured = 1024 * int(done.stdout)
    assert predicted == pytest.approx(measured, rel=0.15)
