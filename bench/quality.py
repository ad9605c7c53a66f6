"""Whether the fast path learns as well as the reference: held-out PSNR of toy trainings.

    python -m bench.quality --out DIR [--steps N] [--seeds N] [--jobs N]
        [--only reference|fast] [--seed N] [--commit HASH]

Trains ``--preset small`` on the toy domains with every seed from 1 to --seeds in two ways: by the
reference step in fp32, and by the whole fast path, on a GPU one CUDA graph. Each training is the
train command in a process of its own, on the device that it chooses, and its score that of its own
last preview: PSNR of 16 held-out images in each direction, whose truth is known. They are compared
as ``bench/quality_scores.py`` says. DIR gets quality.json; what is done is not done again. Exit
code 1: a training failed.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.gpu_suite.cases import DONE, FAILED, Plan, Result
from bench.gpu_suite.processes import run_training
from bench.gpu_suite.record import Record
from bench.gpu_suite.worker import Outcome
from bench.quality_scores import ARROWS, WAYS, lines
from fastcyclegan import command
from fastcyclegan.errors import UserError
from fastcyclegan.options import option, parse, required
from fastcyclegan.presets import PRESETS
from fastcyclegan.runs.metrics import read_metrics

PART, PRESET, THREADS = "quality", "small", "OMP_NUM_THREADS"


@dataclass(frozen=True)
class QualityConfig:
    """Options of ``python -m bench.quality``."""

    out: str = required("the folder of quality.json")
    steps: int = option(PRESETS[PRESET]["steps"], "of each training", low=1, high=10**6)
    seeds: int = option(5, "trains with each seed from 1 to this", low=1, high=1000)
    jobs: int = option(1, "trainings at once; they share the cores", low=1, high=64)
    only: str | None = option(None, "one way alone", choices=list(WAYS))
    seed: int | None = option(None, "one of the seeds alone", low=1)
    commit: str | None = option(None, "recorded where the tree has no git history")


class Training(NamedTuple):
    """One of those that are compared: ``way`` is a key of WAYS."""

    way: str
    seed: int

    @property
    def name(self) -> str:
        """Of its case in the record."""
        return f"{self.way}, seed {self.seed}"


def main(argv: Sequence[str]) -> int:
    """Train what is not done yet; print the scores and the verdict. Raises UserError."""
    config = parse(QualityConfig, "python -m bench.quality", __doc__.partition("\n")[0], argv)
    trainings, failed = chosen(config), False
    record = _record(config)
    waiting = [t for t in trainings if record.state(t.name) != DONE]
    for training, outcome in _outcomes(waiting, config):
        record.put(training.name, outcome)
        failed |= outcome.state != DONE
        print(f"{training.name}: {_told(outcome)}", flush=True)
    for line in lines(list(record.results.values())):
        print(line)
    return command.UNEXPECTED if failed else command.DONE


def chosen(config: QualityConfig) -> list[Training]:
    """Seed by seed, so that what an interrupted call has done can be compared already.

    Raises:
        UserError: there is no such seed.
    """
    if config.seed and config.seed > config.seeds:
        raise UserError(f"--seed {config.seed}: beyond --seeds {config.seeds}; raise that")
    seeds = [config.seed] if config.seed else range(1, config.seeds + 1)
    ways = [config.only] if config.only else list(WAYS)
    return [Training(way, seed) for seed in seeds for way in ways]


def _record(config: QualityConfig) -> Record:
    """With what is done already. Raises UserError if that is of another kind, or other steps."""
    from bench.probes.__main__ import machine
    from fastcyclegan.device import resolve_device

    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--out {out}: {problem.strerror}; name another folder") from None
    here = machine(resolve_device("auto"), config.commit) | {"cores": os.cpu_count()}
    record = Record(PART, Plan(out, float("inf")), here)
    for found in record.results.values():
        if found.get("steps") != config.steps:
            raise UserError(
                f"--steps {config.steps}: {record.path} is of {found.get('steps')} steps; give "
                "another --out"
            )
    return record


def _outcomes(
    waiting: Sequence[Training], config: QualityConfig
) -> Iterator[tuple[Training, Outcome]]:
    """How each of them ended, as they end."""
    given, cores = os.environ.get(THREADS, ""), os.cpu_count() or 1
    threads = int(given) if given.isdecimal() else max(1, cores // config.jobs)
    pool = ThreadPoolExecutor(config.jobs)
    begun = {pool.submit(_outcome, t, config.steps, threads): t for t in waiting}
    try:
        for future in as_completed(begun):
            yield begun[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(training: Training, steps: int, threads: int) -> Outcome:
    try:
        result = train(training, steps, threads)
    except RuntimeError as problem:
        return Outcome(FAILED, error=str(problem))
    return Outcome(DONE, result["seconds"], result)


def train(
    training: Training, steps: int, threads: int | None = None, recipe: Sequence[str] = ()
) -> Result:
    """Train, and return what is recorded: with the PSNR in dB that the last preview had.

    Args:
        threads: that the process may have; None: as many as it takes.
        recipe: more words for the train command.

    Raises:
        RuntimeError: the training failed, or came to no score of its last step.
    """
    start = time.monotonic()
    words = ["--preset", PRESET, *recipe, *WAYS[training.way].words, "--seed", str(training.seed)]
    given = {THREADS: str(threads)} if threads else {}
    with tempfile.TemporaryDirectory() as folder:
        root = run_training(words, steps, Path(folder, "train"), environment=given)
        rows = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "eval"]
    last = rows[-1] if rows else {}
    if last.get("step") != steps or None in map(last.get, ARROWS):
        raise RuntimeError(f"the training came to no PSNR of step {steps}")
    scores = {name: value for name, value in last.items() if "psnr" in name}
    told = {"way": training.way, "seed": training.seed, "steps": steps, "threads": threads}
    return scores | told | {"seconds": round(time.monotonic() - start, 1)}


def _told(outcome: Outcome) -> str:
    if outcome.state == DONE:
        scores = ", ".join(f"{arrow} {outcome.result[k]:.2f} dB" for k, arrow in ARROWS.items())
        return f"{scores}, {outcome.seconds:.0f} s"
    first, *more = outcome.error.splitlines()
    return f"failed: {first}" + (f" ({more[-1][:200]})" if more else "")


if __name__ == "__main__":
    sys.exit(command.run(main))
