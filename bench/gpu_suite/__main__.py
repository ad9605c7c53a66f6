"""Everything that is to be known of a GPU, in parts of a few minutes each.

    python -m bench.gpu_suite --out DIR [--part tests|ladder|ops|dcgan|train|quality ...]
        [--budget SECONDS] [--only TEXT ...] [--commit HASH] [--rehearse]

tests: environment, ceilings, the tests marked cuda, compute-sanitizer. ladder: one CycleGAN step,
lever by lever. ops: the kernels. dcgan: one DCGAN step. train: horse2zebra. quality: reference and
fast path by what they learn, as ``bench.quality`` does it. Each part has --budget seconds, and
begins no case that would not end in time; the same command again goes on with what was left out,
then with what failed. Every case runs in a process of its own. Written to DIR are <part>.json and
pictures; the summary is printed last. Exit code 1: a case failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import examples, jz
from bench.gpu_suite import train_part
from bench.gpu_suite.cases import PARTS, Plan
from bench.gpu_suite.runner import run_part
from bench.gpu_suite.summary import summary
from fastcyclegan import command
from fastcyclegan.errors import UserError

BUDGET = 510.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help says what there is")


def main(argv: Sequence[str]) -> int:
    """Run the parts that ``argv`` names; print how they went."""
    args = _arguments(argv)
    plan = Plan(args.out.resolve(), args.budget, args.rehearse, args.commit)
    parts = list(dict.fromkeys(args.part or PARTS))
    _check(plan, parts)
    records = []
    try:
        for part in parts:
            records.append(run_part(part, PARTS[part], plan, args.only, _say))
    finally:
        for line in summary(records, plan):
            print(line)
    failed = any(c["state"] not in ("done", "left out") for r in records for c in r.cases.values())
    return command.UNEXPECTED if failed else command.DONE


def _say(line: str) -> None:
    print(line, flush=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    name = "python -m bench.gpu_suite"
    parser = _Parser(name, description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--part", nargs="+", choices=PARTS, metavar="PART")
    parser.add_argument("--budget", type=_seconds, default=BUDGET, metavar="SECONDS")
    parser.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="in a case's name")
    parser.add_argument("--commit", help="recorded where the tree has no git history")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def _check(plan: Plan, parts: Sequence[str]) -> None:
    """Make the folder; raise UserError for what would only come to light after minutes."""
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {plan.out}: is a file; name a folder")
    peers: list[tuple[str, Callable[[], Path | None], str]] = [
        (jz.VARIABLE, jz.checkout, "junyanz's code"),
        (examples.VARIABLE, examples.checkout, "pytorch/examples"),
    ]
    for variable, checkout, whose in peers:
        named = os.environ.get(variable)
        if named and checkout() is None:
            raise UserError(f"{variable} {named}: no checkout of {whose}; name one, or unset it")
    import torch

    if not plan.rehearse and not torch.cuda.is_available():
        raise UserError("no CUDA GPU: the suite measures one; --rehearse tries it out on a CPU")
    if "train" in parts and not plan.rehearse:
        train_part.images()
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--out {plan.out}: {problem.strerror}; name another folder") from None


if __name__ == "__main__":
    sys.exit(command.run(main))
