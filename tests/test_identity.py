"""Which options make a run another one."""

from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.distributed import Ranks
from fastcyclegan.preparation import prepare
from fastcyclegan.runs.identity import DEPENDS, FREE, IDENTITY, identity
from tiny_runs import run_on_data


def of(config=None, world=1, **changed):
    return identity(replace(config or TrainConfig(), **changed), "data", "fp32", world)


def test_every_option_is_classed_once():
    """One that is new is thought about: does it change what is computed?"""
    assert Counter((*IDENTITY, *FREE, *DEPENDS)) == Counter(f.name for f in fields(TrainConfig))


def test_what_is_computed_is_in_it_and_nothing_else():
    assert set(of()) == {*IDENTITY, "data"}


def test_epochs_are_the_curve_where_the_schedule_is_fitted():
    """Elsewhere they say how long, and a finished run is continued by more of them."""
    for name in ("n_epochs", "n_epochs_decay", "steps"):
        assert of(**{name: 7}) == of()
        fitted = {"fit_schedule": True, "steps": 9}
        assert of(**fitted | {name: 7}) != of(**fitted)


def test_batch_norms_of_parts_are_another_training():
    """With --sync_bn, or without batch norms, any number of processes computes what one does."""
    batch, dcgan = replace(TrainConfig(), norm="batch"), replace(TrainConfig(), model="dcgan")
    assert of(world=2) == of(world=1)
    for config in (batch, dcgan):
        assert of(config, 2, sync_bn=True) == of(config, 1, sync_bn=True) == of(config, 1)
        parts = [of(config, world) for world in (1, 2, 4)]
        assert len({str(options.get("sync_bn")) for options in parts}) == 3


def test_the_number_of_processes_is_given_to_it(here):
    class Two(Ranks):
        world = 2

    config = replace(TrainConfig(), dataroot="data", norm="batch", batch_size=2, ngf=4, ndf=4)
    config = replace(config, netG="resnet_1blocks", load_size=36, crop_size=32)
    found = prepare(config, torch.device("cpu"), print, Two())[-1]
    assert found["sync_bn"] == "off in 2 processes"


@pytest.mark.parametrize("option", ["--n_epochs", "--n_epochs_decay"])
def test_another_curve_is_refused_by_name(here, option, capsys):
    words = ["--name", "mine", "--fit_schedule", "--steps", "2"]
    assert run_on_data(*words) == 0
    capsys.readouterr()
    assert run_on_data(*words, option, "3") == 2
    err = capsys.readouterr().err
    assert f"({option[2:]}: 100 there, 3 now)" in err and err.count("\n") == 1
