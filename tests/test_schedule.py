"""The learning rate and the end of training as functions of the step number."""

import json

import pytest
import torch
from torch.optim import lr_scheduler

from fastcyclegan.config import TrainConfig
from fastcyclegan.options import parse
from fastcyclegan.steps.schedule import Plateau, Schedule


def test_linear_policy_is_jz_table():
    """Epochs 1 to 100 at 1, then linearly, never 0."""
    schedule = Schedule(images_per_epoch=10, batch_size=1, n_epochs=100, n_epochs_decay=100)
    table = {1: 1.0, 100: 1.0, 101: 0.990099, 102: 0.980198, 150: 0.504950, 199: 0.019802}
    for epoch, factor in (table | {200: 0.009901}).items():
        for step in ((epoch - 1) * 10, epoch * 10 - 1):
            assert schedule.epoch(step) == epoch
            assert schedule.factor(step) == pytest.approx(factor, abs=5e-7)
    assert schedule.total_steps == 2000


def test_article_policy_falls_to_zero_over_the_decay():
    """2e-4 below epoch 100, then 2e-4 - 2e-4 (epoch - 100) / 100, epochs counted from 0."""
    schedule = Schedule(10, 1, 100, 100, policy="article")
    for epoch, factor in {0: 1.0, 99: 1.0, 100: 1.0, 101: 0.99, 150: 0.5, 199: 0.01}.items():
        for step in (epoch * 10, epoch * 10 + 9):
            assert schedule.factor(step) == pytest.approx(factor, abs=1e-12)
    assert Schedule(10, 1, 5, 0, policy="article").factor(49) == 1.0


def test_batches_run_across_epoch_ends():
    schedule = Schedule(images_per_epoch=10, batch_size=4, n_epochs=1, n_epochs_decay=2)
    assert schedule.total_steps == 8  # 30 images, the last batch is full
    assert [schedule.epoch(step) for step in range(8)] == [1, 1, 1, 2, 2, 3, 3, 3]


def test_steps_stop_early_and_fit_compresses():
    plain = Schedule(10, 1, 2, 2, steps=15)
    assert plain.total_steps == 15 and plain.factor(14) == 1.0
    fitted = Schedule(10, 1, 2, 2, steps=8, fit=True)
    assert fitted.total_steps == 8
    factors = [1] * 4 + [2 / 3] * 2 + [1 / 3] * 2
    assert [fitted.factor(step) for step in range(8)] == pytest.approx(factors)
    assert Schedule(10, 1, 2, 2, steps=1000).total_steps == 40
    longer = Schedule(10, 1, 2, 2, steps=1000, fit=True)
    assert longer.total_steps == 1000 and longer.factor(999) == pytest.approx(1 / 3)


class JzOptions:
    """What its get_scheduler reads, and the schedulers that it makes, at our horizon of cosine."""

    n_epochs, n_epochs_decay, decay_iters = 7, 6, 4
    total = n_epochs + n_epochs_decay

    @classmethod
    def scheduler(cls, policy: str, optimiser: torch.optim.Optimizer):
        if policy == "linear":
            return lr_scheduler.LambdaLR(
                optimiser,
                lambda s: 1 - max(0, s + 1 - cls.n_epochs) / (cls.n_epochs_decay + 1),
            )
        if policy == "step":
            return lr_scheduler.StepLR(optimiser, step_size=cls.decay_iters, gamma=0.1)
        return lr_scheduler.CosineAnnealingLR(optimiser, T_max=cls.total, eta_min=0)


def optimiser(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
@pytest.mark.parametrize("policy", ["linear", "step", "cosine"])
def test_policy_is_torch_scheduler_stepped_at_epoch_ends(policy):
    """At every step of every epoch, to the rounding of torch's recursion for cosine."""
    jz, lr, per_epoch = JzOptions, 2e-4, 5
    schedule = Schedule(
        per_epoch, 1, jz.n_epochs, jz.n_epochs_decay, policy=policy, decay_iters=jz.decay_iters
    )
    theirs = optimiser(lr)
    scheduler, seen = jz.scheduler(policy, theirs), set()
    for step in range(schedule.total_steps):
        wanted = theirs.param_groups[0]["lr"]
        seen.add(wanted)
        assert lr * schedule.factor(step) == pytest.approx(wanted, abs=1e-13 * lr, rel=1e-12)
        if schedule.ends_epoch(step):
            scheduler.step()
    assert len(seen) > 3 and schedule.total_steps == per_epoch * jz.total


def metrics(epochs: int) -> list[list[float]]:
    """Per epoch the metric of each of its steps: it falls, stalls, falls a little, and stalls."""
    generator = torch.Generator().manual_seed(1)
    level = [8.0, 7.0, 6.0, *[6.0] * 14, 5.995, 5.9, *[5.9] * 12, 5.84, *[7.0] * 80][:epochs]
    noise = torch.rand(epochs, 3, generator=generator, dtype=torch.float64) * 1e-3
    return [[mean + x for x in row] for mean, row in zip(level, noise.tolist(), strict=True)]


@pytest.mark.parametrize("lr", [2e-4, 5e-8])
def test_plateau_is_torch_scheduler_on_the_epoch_means(lr):
    """At the very low rate, torch stops cutting; the state is taken apart and back every step."""
    theirs, ours, rates = optimiser(lr), Plateau(lr), []
    scheduler = lr_scheduler.ReduceLROnPlateau(
        theirs, mode="min", factor=0.2, threshold=0.01, patience=5
    )
    for values in metrics(60):
        for value in values:
            ours.add(torch.tensor(value, dtype=torch.float64))
            stored, ours = json.loads(json.dumps(ours.state())), Plateau(lr)
            ours.load(stored)
        ours.end_epoch()
        scheduler.step(sum(values) / len(values))
        rates.append(theirs.param_groups[0]["lr"])
        assert lr * ours.factor == pytest.approx(rates[-1], rel=1e-12)
        state = scheduler.state_dict()
        assert (ours.best, ours.bad_epochs) == (
            pytest.approx(state["best"], rel=1e-15),
            state["num_bad_epochs"],
        )
    assert len(set(rates)) > (4 if lr == 2e-4 else 1)


def test_plateau_leaves_the_schedule_flat_and_refuses_half_a_state():
    schedule = Schedule(5, 1, 2, 2, policy="plateau")
    assert {schedule.factor(step) for step in range(schedule.total_steps)} == {1.0}
    with pytest.raises(KeyError):
        Plateau(1.0).load({"factor": 1.0})


def test_epochs_end_where_the_policy_says():
    """Also with batches across the ends, and compressed."""
    across = Schedule(10, 4, 1, 2)
    assert [across.ends_epoch(step) for step in range(8)] == [0, 0, 1, 0, 1, 0, 0, 1]
    fitted = Schedule(10, 1, 2, 2, steps=8, fit=True)
    assert [fitted.ends_epoch(step) for step in range(8)] == [0, 1] * 4


def test_schedule_of_options_takes_each_where_it_belongs():
    words = "--batch_size 2 --n_epochs 3 --n_epochs_decay 4 --steps 9 --fit_schedule"
    words += " --lr_policy step --lr_decay_iters 6"
    config = parse(TrainConfig, "train", "Train.", words.split())
    assert Schedule.of(config, 11) == Schedule(11, 2, 3, 4, 9, True, "step", 6)
