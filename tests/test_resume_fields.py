"""Every field of a checkpoint is needed: dropped, it makes the continued run another one."""

import re
import shutil

import pytest
import torch

import test_train_dcgan
from fastcyclegan import resuming
from test_resume import ALL, outcome, same
from tiny_runs import final_state, make_images, run_on_data


def run_dcgan(*words):
    return test_train_dcgan.run("--ema", "0.9", *words)


# How a run of each system begins, its steps, and how many of them it has made when it is stopped.
SYSTEMS = {
    "cyclegan": (run_on_data, ALL, 10, 7),
    "sizes": (run_on_data, ["--preprocess", "none"], 10, 7),
    "dcgan": (run_dcgan, [], 7, 3),
}


def moments(*names):
    return [f"train_state:{name}" for name in names]


def networks(*names, statistics):
    counted = ("running_mean", "running_var", "num_batches_tracked") if statistics else ()
    return [f"{name}:{what}" for name in names for what in ("", *counted)]


COMMON = moments("*/exp_avg", "*/exp_avg_sq", "*/step", "metrics/sums")
COMMON += ["state:summed", *(f"state:skips.{x}" for x in ("in_a_row", "offset", "went_back_to"))]
POOLS = moments("pool_A/images", "pool_B/images")
KINDS = {
    "cyclegan": [
        *COMMON, *POOLS, *moments("pool_A/count", "pool_B/count", "random/cpu"),
        *networks("G_A", "G_B", "D_A", "D_B", statistics=True),
        *(f"state:plateau.{x}" for x in ("factor", "best", "bad_epochs", "total", "count")),
    ],
    "sizes": [*COMMON, *POOLS, *networks("G_A", "G_B", "D_A", "D_B", statistics=False)],
    "dcgan": [*COMMON, *networks("G", "D", "G_ema", statistics=True)],
}  # fmt: skip
# What shows where steps are skipped alone, and is dropped in test_train_faults.py.
OF_SKIPS = ("state:skips.in_a_row", "state:skips.went_back_to")
# The average takes these over from G at each step.
OF_G = networks("G_ema", statistics=True)[1:]
# Of the images of different sizes only what is stored in another way.
DROPPED = [(s, k) for s in ("cyclegan", "dcgan") for k in KINDS[s] if k not in (*OF_SKIPS, *OF_G)]
DROPPED += [("sizes", k) for k in POOLS]

# What stands in the place of a field that is dropped, where it is not zero.
OTHER = {"random/cpu": torch.Generator().manual_seed(9).get_state(), "factor": 0.5, "count": 9.0}
OTHER |= {"best": None, "bad_epochs": 3, "offset": 5, "summed": 0}


def result(root):
    """What a run leaves, without the scores of previews: one comes wherever a run ends."""
    *state, rows = outcome(root)
    return *state, [row for row in rows if row["kind"] != "eval"]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """By system: a whole run and the first part of the same, as (folder, result of the whole)."""
    made = {}

    def of(system):
        if system not in made:
            root, (run, words, steps, stop) = tmp_path_factory.mktemp(system), SYSTEMS[system]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                for seed, (folder, count) in enumerate((("trainA", 5), ("trainB", 3)), 1):
                    make_images(root / "data" / folder, count, seed=seed)
                    if system == "sizes":
                        make_images(root / "data" / folder / "wide", 1, (36, 48), seed=seed)
                assert run(*words, "--name", "whole", "--steps", str(steps)) == 0
                assert run(*words, "--name", "half", "--steps", str(stop)) == 0
            made[system] = root, result(root / "checkpoints/whole")
        return made[system]

    return of


def kind(path):
    """Parts of a checkpoint that are dropped together: all moments of one sort, say."""
    path = re.sub(r"^(train_state:)[GD](_[AB])?/.*/", r"\1*/", path)
    path = re.sub(r"^(train_state:pool_[AB]/images)/\d+$", r"\1", path)
    return re.sub(r"^([GD]\w*):.*?(running_\w+|num_batches_tracked)?$", r"\1:\2", path)


def parts_of(weights, tensors, state):
    """(path, where it lies, its key) of every stored field."""
    for name, stored in weights.items():
        yield from ((f"{name}:{key}", stored, key) for key in stored)
    yield from ((f"train_state:{key}", tensors, key) for key in tensors)
    for key, value in state.items():
        inner = value if isinstance(value, dict) else {None: value}
        for leaf in inner:
            place = (value, leaf) if isinstance(value, dict) else (state, key)
            yield f"state:{key}" + (f".{leaf}" if leaf else ""), *place


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_stored_field_is_forgotten_here(halves, system):
    stored = final_state(halves(system)[0] / "checkpoints/half")
    assert {kind(path) for path, *_ in parts_of(*stored)} == set(KINDS[system])


def resumed(root, system, monkeypatch, dropped):
    """The result of the second part, with the fields of the kind ``dropped`` lost on the way."""
    shutil.rmtree(root / "checkpoints/parts", ignore_errors=True)
    shutil.copytree(root / "checkpoints/half", root / "checkpoints/parts")
    load, lost, (run, words, steps, _) = resuming.load_checkpoint, [], SYSTEMS[system]

    def load_without(path):
        stored = load(path)
        for name, place, key in list(parts_of(*stored)):
            if kind(name) == dropped:
                place[key] = OTHER.get(key, torch.as_tensor(place[key]) * 0)
                lost.append(name)
        return stored

    monkeypatch.chdir(root)
    monkeypatch.setattr(resuming, "load_checkpoint", load_without)
    assert run(*words, "--name", "parts", "--steps", str(steps)) == 0
    assert bool(lost) == (dropped is not None)
    return result(root / "checkpoints/parts")


@pytest.mark.parametrize("system", SYSTEMS)
def test_with_all_of_it_the_second_half_is_the_same(halves, monkeypatch, system):
    root, whole = halves(system)
    assert same(resumed(root, system, monkeypatch, None), whole)


@pytest.mark.parametrize(("system", "dropped"), DROPPED)
def test_without_any_field_it_is_another_run(halves, monkeypatch, system, dropped):
    root, whole = halves(system)
    assert not same(resumed(root, system, monkeypatch, dropped), whole)
