"""Two ways to train, compared seed by seed by what their generators are worth in the end.

The difference is the mean over the seeds of fast less reference, with its standard error. The
spread of a way is the standard deviation of its PSNR over the seeds, and the difference is within
the spread if it is smaller than that of either way: another seed then changes more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any, NamedTuple

REFERENCE, FAST = "reference", "fast"
ARROWS = {"psnr_B": "A -> B", "psnr_A": "B -> A"}
Scores = Mapping[str, Any]


class Way(NamedTuple):
    """One way to train: its name in tables, and words for the train command."""

    title: str
    words: tuple[str, ...]


WAYS = {
    REFERENCE: Way("reference fp32 eager", ("--impl", "reference", "--precision", "fp32")),
    FAST: Way(
        "fused bf16 compiled, step",
        ("--precision", "bf16", "--compile", "--compile_scope", "step"),
    ),
}


@dataclass(frozen=True)
class Compared:
    """One direction: PSNR in dB by way, of the same seeds in the same order, two or more."""

    arrow: str
    scores: Mapping[str, Sequence[float]]

    @property
    def difference(self) -> float:
        """The mean of fast less reference, in dB."""
        return mean(self._differences)

    @property
    def error(self) -> float:
        """The standard error of the difference, seed by seed."""
        return stdev(self._differences) / sqrt(len(self._differences))

    @property
    def spread(self) -> float:
        """The smaller of both ways' standard deviations over the seeds."""
        return min(map(stdev, self.scores.values()))

    @property
    def within(self) -> bool:
        """Whether another seed changes more than the fast path does."""
        return abs(self.difference) < self.spread

    @property
    def _differences(self) -> list[float]:
        return [y - x for x, y in zip(self.scores[REFERENCE], self.scores[FAST], strict=True)]


def seeds_of_both(trainings: Sequence[Scores]) -> list[int]:
    """The seeds that both ways were trained with."""
    found = [{t["seed"] for t in trainings if t["way"] == way} for way in WAYS]
    return sorted(set.intersection(*found))


def compare(trainings: Sequence[Scores]) -> list[Compared]:
    """Both directions; none as long as there are not two seeds that both ways have.

    Args:
        trainings: each with ``way``, ``seed`` and the PSNR of both directions.
    """
    seeds, by = seeds_of_both(trainings), {(t["way"], t["seed"]): t for t in trainings}
    if len(seeds) < 2:
        return []
    return [
        Compared(arrow, {way: [by[way, seed][name] for seed in seeds] for way in WAYS})
        for name, arrow in ARROWS.items()
    ]


def verdict(compared: Sequence[Compared]) -> str:
    """One sentence on all directions."""
    if not compared:
        return "no verdict: it takes two seeds that both ways were trained with"
    outside = [one for one in compared if not one.within]
    if not outside:
        return "the difference lies within the seeds' spread in both directions"
    told = (f"{x.arrow} by {x.difference:+.2f} dB, spread {x.spread:.2f} dB" for x in outside)
    return f"the difference does NOT lie within the seeds' spread: {'; '.join(told)}"


def lines(trainings: Sequence[Scores]) -> Iterator[str]:
    """For people: every training, then both ways and their difference, then the verdict."""
    yield f"{'held-out PSNR, dB':34}{''.join(f'{arrow:>8}' for arrow in ARROWS.values())}"
    for t in sorted(trainings, key=lambda t: (t["seed"], list(WAYS).index(t["way"]))):
        title = f"seed {t['seed']}, {WAYS[t['way']].title}"
        yield f"{title:34}{''.join(f'{t[name]:8.2f}' for name in ARROWS)}"
    compared = compare(trainings)
    for one in compared:
        for way, scores in one.scores.items():
            yield f"{one.arrow}: {WAYS[way].title}: {_with_spread(scores)}"
        yield f"{one.arrow}: difference {_with_error(one)}"
    yield verdict(compared)


def table(trainings: Sequence[Scores], machine: str) -> str:
    """Both ways and their difference in Markdown, with the verdict and the ``machine``."""
    compared, steps = compare(trainings), trainings[0]["steps"]
    rows = {WAYS[way].title: [_with_spread(x.scores[way]) for x in compared] for way in WAYS}
    rows["difference"] = [_with_error(x) for x in compared]
    heads = ["held-out PSNR, dB", *(x.arrow for x in compared)]
    found = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found += [f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()]
    told = f"{len(seeds_of_both(trainings))} seeds, {steps} steps each: {verdict(compared)}."
    return "\n".join([*found, "", f"{told} {machine}."])


def _with_spread(scores: Sequence[float]) -> str:
    return f"{mean(scores):.2f}, spread {stdev(scores):.2f}"


def _with_error(compared: Compared) -> str:
    return f"{compared.difference:+.2f}, standard error {compared.error:.2f}"
