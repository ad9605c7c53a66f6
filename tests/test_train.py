"""The train command from its words to its files: what a run leaves, resumes, and refuses."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcyclegan import load_generator, preparation, training
from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.runs.checkpoint import latest_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps import compilation, schedule
from fastcyclegan.steps.cyclegan import STEPS
from fastcyclegan.steps.losses import NAMES
from tiny_runs import final_state, make_images, run, run_on_data


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "img_per_s"} for row in rows]


def test_a_run_leaves_what_interfaces_promise(here, capsys):
    assert run_on_data("--steps", "6") == 0
    root = here / "checkpoints/0001"
    config = json.loads((root / "config.json").read_text())
    assert config["finished"] is True and config["train"]["steps"] == 6
    rows = read_metrics(root / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4, 6]
    for row in rows:
        assert row["schema"] == 1 and row["lr_G"] == row["lr_D"] == 0.0002
        assert row["images"] == row["step"] and row["epoch"] == 1 + (row["step"] - 1) // 5
        assert all(np.isfinite(row[name]) for name in NAMES) and row["img_per_s"] > 0
    assert sorted(p.name for p in (root / "previews").iterdir()) == [
        "step-00000004.png",
        "step-00000006.png",
    ]
    assert sorted(p.stem for p in (root / "weights").iterdir()) == ["D_A", "D_B", "G_A", "G_B"]
    assert (root / "ckpt/step-00000006/train_state.safetensors").is_file()
    out = capsys.readouterr().out
    assert "domain A: 5 images" in out and "step 6/6" in out and "done: weights in" in out
    net = load_generator(root, direction="BtoA")
    image = torch.rand(1, 3, 32, 32)
    saved = load_generator(root / "weights/G_B.safetensors")
    assert torch.equal(net(image), saved(image))


def test_a_run_made_longer_is_the_same_run(here):
    """Bit for bit; test_resume_systems.py has interruptions at every kind of place."""
    for name, steps in (("whole", "8"), ("parts", "3"), ("parts", "8")):
        assert run_on_data("--name", name, "--steps", steps) == 0
    whole, parts = (here / "checkpoints" / name for name in ("whole", "parts"))
    (weights, tensors, state), (weights2, tensors2, state2) = map(final_state, (whole, parts))
    assert state == state2 and tensors.keys() == tensors2.keys()
    assert all(torch.equal(tensors[key], tensors2[key]) for key in tensors)
    for name, tensors_of_net in weights.items():
        assert all(torch.equal(tensors_of_net[k], weights2[name][k]) for k in tensors_of_net)
    rows, rows2 = (without_time(read_metrics(r / "metrics.jsonl")) for r in (whole, parts))
    assert rows == rows2 and [row["step"] for row in rows] == [2, 4, 6, 8]


def test_a_finished_run_says_so_and_an_unnamed_one_gets_a_new_number(here, capsys):
    for name, words in (("0001", []), ("named", ["--name", "named"])):
        assert run_on_data("--steps", "2", *words) == 0
        assert (here / "checkpoints" / name).is_dir()
    capsys.readouterr()
    assert run_on_data("--steps", "2", "--name", "named") == 0
    assert "is finished at step 2: raise" in capsys.readouterr().out
    assert run_on_data("--steps", "2") == 0
    assert (here / "checkpoints/0002/weights/G_A.safetensors").is_file()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_the_same_command_continues(here, monkeypatch, capsys, signum, code):
    calls = []

    def interrupted(model, *arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signum)
        return fused(model, *arguments)

    fused = STEPS["fused"]
    monkeypatch.setitem(STEPS, "fused", interrupted)
    assert run_on_data("--steps", "5") == code
    assert latest_checkpoint(RunFolder(here / "checkpoints/0001"))[0] == 3
    assert run_on_data("--steps", "5") == 0
    assert "continuing run checkpoints/0001 at step 3" in capsys.readouterr().out
    assert len(calls) == 5


def test_without_a_compiler_it_says_so_and_trains(here, monkeypatch, capsys):
    monkeypatch.setattr(training, "missing_compiler", lambda device: "no C++ compiler found")
    assert run_on_data("--steps", "2", "--compile") == 0
    assert capsys.readouterr().out.count("--compile: no C++ compiler found; running eager") == 1


def test_images_of_different_sizes_run_eager_and_uncaptured(here, monkeypatch, capsys):
    """With --compile that is said; what asks for a graph by name is refused."""

    def as_on_a_gpu(run, graphs=training.Run._graphs):
        device, run.device = run.device, torch.device("cuda")
        try:
            return graphs(run)
        finally:
            run.device = device

    monkeypatch.setattr(training.Run, "_graphs", as_on_a_gpu)
    monkeypatch.setattr(preparation, "check_device", lambda config, device: None)
    make_images(here / "mixed/trainB", 2)
    make_images(here / "mixed/trainA", 1)
    make_images(here / "other", 1, (60, 48))
    (here / "other/0.png").rename(here / "mixed/trainA/1.png")
    words = ("--dataroot", "mixed", "--preprocess", "none", "--steps", "3")
    assert run(*words, "--compile") == 0
    out = capsys.readouterr().out
    sizes = "the images have different sizes after --preprocess none"
    assert f"--compile: {sizes}, and each would be compiled anew; running eager instead" in out
    assert f"the step runs uncaptured: {sizes}" in out and "compilation" not in out
    assert run(*words, "--cuda_graph", "on") == 2
    assert f"error: --cuda_graph on: {sizes}; leave it out" in capsys.readouterr().err


def test_options_reach_the_training(here):
    words = "--direction BtoA --input_nc 1 --lambda_identity 0 --batch_size 2 --no_flip --ndf 3"
    words += " --netD n_layers --n_layers_D 2 --padding zero --serial_batches --steps 2"
    assert run_on_data(*words.split()) == 0
    root = here / "checkpoints/0001"
    G_A = load_generator(root)
    assert G_A.arch["input_nc"] == 1 and G_A.arch["output_nc"] == 3
    assert G_A.arch["padding"] == "zero"
    row = read_metrics(root / "metrics.jsonl")[0]
    assert row["idt_A"] == row["idt_B"] == 0.0 and row["images"] == 2 * row["step"]


def test_plateau_falls_and_resumes_as_the_same_run(here, monkeypatch):
    """Inside an epoch and at its end, bit for bit; a run that forgets the plateau is another."""
    monkeypatch.setattr(schedule, "PLATEAU_PATIENCE", 1)
    words = ["--lr_policy", "plateau", "--max_dataset_size", "2", "--lr", "1e-6"]
    assert run_on_data(*words, "--name", "whole", "--steps", "14") == 0
    rows = without_time(read_metrics(here / "checkpoints/whole/metrics.jsonl"))
    plateau = schedule.Plateau(lr=1e-6)
    for row in rows:  # one for each epoch of two images
        assert row["lr_G"] == pytest.approx(1e-6 * plateau.factor, rel=1e-12)
        plateau.add(torch.tensor(row["cycle_A"] + row["cycle_B"]))
        plateau.end_epoch()
    assert plateau.factor < 0.3
    best = final_state(here / "checkpoints/whole")[2]["plateau"]["best"]
    assert best == pytest.approx(plateau.best, rel=1e-6)
    for stop_at, load in ((5, True), (6, True), (7, False)):
        name = f"parts{stop_at}"
        assert run_on_data(*words, "--name", name, "--steps", str(stop_at)) == 0
        if not load:
            monkeypatch.setattr(schedule.Plateau, "load", lambda self, state: None)
        assert run_on_data(*words, "--name", name, "--steps", "14") == 0
        (_, tensors, state), (_, tensors2, state2) = (
            final_state(here / "checkpoints" / run_name) for run_name in ("whole", name)
        )
        same = all(torch.equal(tensors[key], tensors2[key]) for key in tensors)
        rows2 = without_time(read_metrics(here / "checkpoints" / name / "metrics.jsonl"))
        assert ((state, rows) == (state2, rows2) and same) is load
        assert set(state["plateau"]) == {"factor", "best", "bad_epochs", "total", "count"}


def test_what_a_gpu_run_needs(monkeypatch):
    """A compiler for the kernels; for a deterministic run, the kernels."""
    gpu, reference = torch.device("cuda:0"), TrainConfig(impl="reference", deterministic=True)
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: "no C compiler found")
    with pytest.raises(UserError, match=r"no C compiler found, .* use --impl reference"):
        preparation.check_device(TrainConfig(), gpu)
    with pytest.raises(UserError, match=r"--deterministic: .* that --impl reference uses"):
        preparation.check_device(reference, gpu)
    preparation.check_device(replace(reference, netG="unet_128"), gpu)
    preparation.check_device(reference, torch.device("cpu"))
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    preparation.check_device(TrainConfig(deterministic=True), gpu)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "words",
    [
        "--precision bf16",
        "--padding replicate --upsample resize --dropout",
        "--gan_mode wgangp",
        "--netG unet_128 --load_size 143 --crop_size 128",
        "--precision bf16 --norm batch --compile",
    ],
)
def test_two_deterministic_runs_on_a_gpu_are_the_same_run(here, words):
    """Bit for bit, as every run on a CPU is."""
    words = ["--device", "cuda", "--deterministic", "--steps", "8", *words.split()]
    for name in ("once", "again"):
        assert run_on_data("--name", name, *words) == 0
    once, again = (final_state(here / "checkpoints" / name) for name in ("once", "again"))
    for found, wanted in ((again[1], once[1]), *((again[0][k], once[0][k]) for k in once[0])):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("policy", ["step", "cosine"])
def test_policies_reach_the_training(here, policy):
    words = "--n_epochs 1 --n_epochs_decay 1 --max_dataset_size 2 --lr_decay_iters 1"
    assert run_on_data("--lr_policy", policy, *words.split()) == 0
    rows = read_metrics(here / "checkpoints/0001/metrics.jsonl")
    second = {"step": 0.1, "cosine": 0.5}[policy]
    assert [r["lr_G"] for r in rows if r["kind"] == "train"] == pytest.approx([2e-4, second * 2e-4])


@pytest.mark.parametrize("mode", ["vanilla", "wgangp"])
def test_gan_modes_train_and_wgangp_says_what_it_costs(here, monkeypatch, capsys, mode):
    """With --compile the penalty keeps the discriminators out of torch.compile, said once."""
    compiled = []
    monkeypatch.setattr(training, "missing_compiler", lambda device: None)
    monkeypatch.setattr(compilation, "compile_networks", lambda networks: compiled.extend(networks))
    assert run_on_data("--steps", "4", "--gan_mode", mode, "--compile") == 0
    judges = sum(type(net).__name__ == "NLayerDiscriminator" for net in compiled)
    assert (len(compiled), judges) == ((2, 0) if mode == "wgangp" else (4, 2))
    said = capsys.readouterr().out.count("discriminators run uncompiled")
    assert said == (1 if mode == "wgangp" else 0)
    rows = read_metrics(here / "checkpoints/0001/metrics.jsonl")
    assert all(np.isfinite(row[name]) for row in rows for name in NAMES)
    assert rows[0]["G_A"] < 0.6 if mode == "wgangp" else rows[0]["G_A"] > 0.6


@pytest.mark.parametrize("mode", ["none", "scale_width", "crop", "scale_width_and_crop"])
def test_every_preprocess_mode_trains(here, mode):
    assert run_on_data("--preprocess", mode, "--steps", "2", "--lr", "0.001") == 0


def bad_input(here: Path) -> dict[str, tuple[list[str], str]]:
    """Case: the words, and what the one line must say."""
    make_images(here / "onesided/trainA", 2)
    (here / "onesided/trainB").mkdir()
    (here / "empty/trainA").mkdir(parents=True)
    (here / "empty/trainB").mkdir()
    (here / "afile").write_text("x")
    make_images(here / "uneven/trainA", 1, (40, 40))
    make_images(here / "uneven/trainA2", 1, (60, 48))
    make_images(here / "uneven/trainB", 1, (40, 40))
    (here / "uneven/trainA2/0.png").rename(here / "uneven/trainA/1.png")
    make_images(here / "bad/trainA", 3)
    make_images(here / "bad/trainB", 3)
    (here / "bad/trainA/1.png").write_bytes(b"no image")
    data, uneven = ["--dataroot", "data"], ["--dataroot", "uneven", "--preprocess", "none"]
    return {
        "missing": (["--dataroot", "nowhere"], "--dataroot nowhere does not exist"),
        "empty": (["--dataroot", "empty"], "empty/trainA"),
        "one-sided": (["--dataroot", "onesided"], "onesided/trainB"),
        "only one of two": (["--dataroot_A", "data/trainA"], "--dataroot_B"),
        "not writable": ([*data, "--checkpoints_dir", "afile"], "afile"),
        "crop above load": ([*data, "--crop_size", "40"], "--crop_size 40"),
        "crop above image": ([*data, "--preprocess", "crop", "--crop_size", "64"], "0.png"),
        "not divisible": ([*data, "--crop_size", "30"], "multiple of 4"),
        "odd after scaling": (
            [*data, "--preprocess", "scale_width", "--load_size", "38", "--crop_size", "16"],
            "multiples of 4",
        ),
        "too small for D": ([*data, "--crop_size", "20"], "at least 24 pixels"),
        "no mixture": ([*uneven, "--gan_mode", "wgangp"], "--gan_mode wgangp"),
        "too many bad": (["--dataroot", "bad"], "1.png"),
        "outside": ([*data, "--name", "../../x"], "--name '../../x' cannot name a run"),
        "unknown": ([*data, "--n_epoch", "3"], "did you mean --n_epochs?"),
        "removed": ([*data, "--gpu_ids", "-1"], "use --device"),
        "impossible": ([*data, "--batch_size", "-3"], "--batch_size -3"),
        "no such device": ([*data, "--device", "cuda:99"], "--device cuda:99"),
        "not a device": ([*data, "--device", "tpu"], "--device tpu"),
        "tf32": ([*data, "--precision", "tf32"], "--precision tf32"),
    }


def tree(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_bad_input_gives_one_line_code_2_and_writes_nothing(here, capsys):
    cases = bad_input(here)
    before = tree(here)
    for case, (words, said) in cases.items():
        capsys.readouterr()
        assert run("--steps", "2", *words) == 2, case
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, case
        assert said in captured.err, (case, captured.err)
        assert "Traceback" not in captured.out + captured.err, case
        assert tree(here) == before, case
    assert not (here.parent / "x").exists()


def test_a_named_run_of_other_options_is_refused_and_kept(here, capsys):
    assert run_on_data("--name", "mine", "--steps", "2") == 0
    before = tree(here)
    assert run_on_data("--name", "mine", "--steps", "4", "--lambda_A", "5") == 2
    assert "lambda_A: 10.0 there, 5.0 now" in capsys.readouterr().err
    assert tree(here) == before


def test_bad_files_below_the_limit_are_quarantined(here, capsys):
    (here / "data/trainA/5.png").write_bytes(b"no image")
    assert run_on_data("--max_bad", "0.5", "--steps", "2") == 0
    root = here / "checkpoints/0001"
    entries = [json.loads(line) for line in (root / "quarantine.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in entries] == ["5.png"] and entries[0]["reason"]
    events = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "event"]
    assert events[0]["event"] == "quarantine" and events[0]["files"] == 1
    assert "1 passed over" in capsys.readouterr().out


def test_constant_images_train_and_are_told(here, capsys):
    """No contrast at all: the norm's variance is 0, and everything stays finite."""
    from PIL import Image

    for domain, value in (("A", 0), ("B", 255)):
        for path in (here / f"data/train{domain}").iterdir():
            Image.new("RGB", (40, 40), (value, value, value)).save(path)
    assert run_on_data("--steps", "6") == 0
    assert "domain A: 5 images (5 of one constant colour)" in capsys.readouterr().out
    rows = read_metrics(here / "checkpoints/0001/metrics.jsonl")
    assert len(rows) == 3 and all(np.isfinite(row[name]) for row in rows for name in NAMES)
