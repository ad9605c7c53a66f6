"""python -m fastcyclegan.checkpoint: verify, list or prune the checkpoints of a run.

Checkpoints are read as data: nothing in them is executed. torch is imported only after the options
are read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from time import localtime, strftime
from typing import TYPE_CHECKING

from fastcyclegan import command
from fastcyclegan.config import CheckpointConfig
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.options import parse

if TYPE_CHECKING:
    from fastcyclegan.runs.checkpoint import Found


def main(argv: Sequence[str]) -> int:
    """Run the command with the words ``argv`` and return its exit code. Raises UserError."""
    config = parse(
        CheckpointConfig,
        "python -m fastcyclegan.checkpoint",
        "Verify, list or prune the checkpoints of a run: verify|list|prune RUN.",
        argv,
    )
    from fastcyclegan.runs.best import survey_best
    from fastcyclegan.runs.checkpoint import survey
    from fastcyclegan.runs.folder import RunFolder

    folder = RunFolder(Path(config.run))
    if not folder.ckpt.is_dir():
        raise UserError(f"{printable(folder.root)} is no run folder: it has no folder ckpt")
    if config.action == "prune":
        with folder.locked() as folder:
            if folder.lock.warning:
                print(folder.lock.warning)
            return _prune(folder.root, survey(folder), config.keep)
    found = survey(folder, verify=config.action == "verify")
    if not found:
        print(f"{printable(folder.ckpt)} has no checkpoint")
    for checkpoint in found:
        print(_line(checkpoint))
    best = survey_best(folder, verify=config.action == "verify")
    if best:
        kept, standing = best
        print("  ".join([_line(kept), standing]).rstrip())
        found.append(kept)
    damaged = [checkpoint for checkpoint in found if checkpoint.damage]
    if config.action == "verify" and damaged:
        raise UserError(
            f"{len(damaged)} of {len(found)} checkpoints of {printable(folder.root)} are damaged; "
            "training passes them over"
        )
    return command.DONE


def _line(checkpoint: Found) -> str:
    told = [
        checkpoint.path.name,
        strftime("%Y-%m-%d %H:%M:%S", localtime(checkpoint.modified)),
        f"{checkpoint.size / 2**20:.1f} MiB",
    ]
    told += ["milestone"] if checkpoint.milestone else []
    told += [f"DAMAGED: {printable(checkpoint.damage)}"] if checkpoint.damage else []
    told += ["sound"] if checkpoint.damage == "" else []
    return "  ".join(told)


def _prune(root: Path, found: Sequence[Found], keep: int) -> int:
    from fastcyclegan.runs.checkpoint import remove

    sound = [checkpoint for checkpoint in found if not checkpoint.damage]
    if not sound:
        raise UserError(f"{printable(root)} has no sound checkpoint: nothing is removed")
    going = [c for c in found if c not in sound[-keep:] and not (c in sound and c.milestone)]
    for checkpoint in going:
        remove(checkpoint.path)
        print(f"removed {_line(checkpoint)}")
    freed = sum(checkpoint.size for checkpoint in going) / 2**20
    print(f"removed {len(going)} of {len(found)} checkpoints, {freed:.1f} MiB")
    return command.DONE


if __name__ == "__main__":
    sys.exit(command.run(main))
