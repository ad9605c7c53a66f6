"""The learning rate and the end of training as functions of the step number."""

import pytest

from fastcyclegan.steps.schedule import Schedule


def test_linear_policy_is_jz_table():
    """Epochs 1 to 100 at 1, then linearly, never 0."""
    schedule = Schedule(images_per_epoch=10, batch_size=1, n_epochs=100, n_epochs_decay=100)
    table = {1: 1.0, 100: 1.0, 101: 0.990099, 102: 0.980198, 150: 0.504950, 199: 0.019802}
    for epoch, factor in (table | {200: 0.009901}).items():
        for step in ((epoch - 1) * 10, epoch * 10 - 1):
            assert schedule.epoch(step) == epoch
            assert schedule.factor(step) == pytest.approx(factor, abs=5e-7)
    assert schedule.total_steps == 2000


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
