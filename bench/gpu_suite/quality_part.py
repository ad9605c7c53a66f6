"""Part quality: what reference and fast path learn of toy images, as ``bench.quality`` does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from bench import quality_scores
from bench.gpu_suite.cases import Case, Plan, Result
from bench.gpu_suite.train_part import TINY
from bench.quality import QualityConfig, chosen, train

TINY_STEPS = 2
# Nothing here is timed, and toy networks leave most of a GPU idle.
LANES = 4


def cases(plan: Plan) -> Sequence[Case]:
    """The trainings of its default options; the command goes on with what is recorded here."""
    config = QualityConfig(str(plan.out))
    if plan.rehearse:
        first = chosen(QualityConfig(config.out, only=quality_scores.REFERENCE, seed=1))
        return [Case(t.name, partial(train, t, TINY_STEPS, 1, TINY), 10) for t in first]
    steps = config.steps
    return [Case(t.name, partial(train, t, steps), 60, limit=240) for t in chosen(config)]


def lines(results: Mapping[str, Result]) -> list[str]:
    """The scores of every training, and the verdict."""
    return list(quality_scores.lines(list(results.values())))
