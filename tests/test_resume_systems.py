"""Every system, stopped anywhere and continued, is the run that never stopped, bit for bit."""

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import test_systems
import test_train_dcgan
from fastcyclegan import feed
from house_rules import ROOT
from test_resume import ALL, DECAY, outcome, same
from tiny_runs import make_images, run_on_data

# Inside an epoch; at the end of one, where the rate begins to fall; at another, where the article's
# begins to.
STOPS = (3, 5, 10)
STEPS = 15


def article(*words):
    return test_systems.run("article", "--no_fit_schedule", *DECAY, *words)


def johnson(*words):
    return test_systems.run("johnson", "--no_fit_schedule", *DECAY, *words)


def resnet(*words):
    return run_on_data(*DECAY, *words)


def dcgan(*words):
    """With as many steps as the others, of four images each."""
    epochs = ["--n_epochs", "4", "--n_epochs_decay", "8"]
    return test_train_dcgan.run("--dataroot", "data/trainA", *epochs, *words)


UNET = ["--netG", "unet_128", "--crop_size", "128", "--load_size", "132", "--dropout"]
AVERAGED = ["--ema", "0.9", "--load_size", "20", "--preprocess", "resize_and_crop"]
SYSTEMS = {
    "resnet": (resnet, []),
    "all that is stored": (run_on_data, [*ALL, "--n_epochs", "3"]),
    "bf16": (resnet, ["--precision", "bf16"]),
    "sizes": (resnet, ["--preprocess", "none"]),
    "unet": (resnet, UNET),
    "wgangp": (resnet, ["--gan_mode", "wgangp"]),
    "article": (article, []),
    "johnson": (johnson, []),
    "dcgan": (dcgan, []),
    "dcgan bf16": (dcgan, [*AVERAGED, "--precision", "bf16"]),
}
COMPILED = ("resnet", "article", "johnson", "dcgan")


@contextmanager
def stopped_at(step):
    """SIGTERM comes in the step that makes it so many."""
    with pytest.MonkeyPatch.context() as patch:
        call = feed.Feed.__call__

        def taken(self, number):
            if number + 1 == step:
                signal.raise_signal(signal.SIGTERM)
            return call(self, number)

        patch.setattr(feed.Feed, "__call__", taken)
        yield


def check(system, stops, *words):
    """The runs in the working folder: a whole one, and one for each stop."""
    run, of_system = SYSTEMS[system]
    words = [*of_system, *words]
    assert run(*words, "--name", "whole") == 0
    whole = outcome(Path("checkpoints/whole"))
    rates = [row["lr_G"] for row in whole[-1] if row["kind"] == "train"]
    assert whole[-1][-1]["step"] == STEPS
    assert rates[0] == rates[1] > rates[-1] or "plateau" in words
    for stop in stops:
        name = f"parts{stop}"
        with stopped_at(stop):
            assert run(*words, "--name", name) == 143
        assert run(*words, "--name", name) == 0
        assert same(whole, outcome(Path("checkpoints") / name)), stop


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_resumes_as_the_same_run(here, system):
    if system == "sizes":
        make_images(here / "data/trainB/wide", 2, (36, 48))
    check(system, STOPS)


@pytest.mark.slow
@pytest.mark.parametrize("system", COMPILED)
def test_compiled_it_does_too(here, monkeypatch, system):
    """In a process of its own: compiled code and its caches stay out of the other tests."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    words = f"{system!r}, {STOPS}, '--compile'"
    script = f"import test_resume_systems as t; t.check({words}); print('same')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("same\n"), done.stderr[-2000:]
    assert "eager instead" not in done.stdout


@pytest.mark.cuda
@pytest.mark.parametrize("words", ["", "--precision bf16 --norm batch --dropout", "--compile"])
@pytest.mark.parametrize("graph", ["off", "on"])
def test_on_a_gpu_it_does_too(here, words, graph):
    """One graph of many replays or two of fewer, behind other first steps."""
    words = ["--device", "cuda", "--deterministic", "--cuda_graph", graph, *words.split()]
    check("resnet", STOPS[:1], *words)


@pytest.mark.cuda
@pytest.mark.parametrize("words", ["", "--precision bf16 --ema 0.9", "--compile"])
@pytest.mark.parametrize("graph", ["off", "on"])
def test_on_a_gpu_a_dcgan_does_too(here, words, graph):
    words = ["--device", "cuda", "--deterministic", "--cuda_graph", graph, *words.split()]
    check("dcgan", STOPS[:1], *words)
