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
        _refuse_links(folder.ckpt)
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
    if config.action == "verify":
        _refuse_damage(folder.root, found)
    return command.DONE


def _refuse_damage(root: Path, found: Sequence[Found]) -> None:
    damaged = [checkpoint for checkpoint in found if checkpoint.damage]
    if not damaged:
        return
    count = f"{len(damaged)} of {len(found)} checkpoints of {printable(root)} are damaged"
    if any(checkpoint.unknown for checkpoint in damaged):
        raise UserError(f"{count} or cannot be read; training stops at those that cannot")
    raise UserError(f"{count}; training passes them over")


def _refuse_links(ckpt: Path) -> None:
    for path in (ckpt, *sorted(ckpt.iterdir())):
        if path.is_symlink():
            raise UserError(
                f"{printable(path)} is a link, perhaps to another run: nothing is removed; remove "
                "the link itself first"
            )


def _line(checkpoint: Found) -> str:
    told = [
        checkpoint.path.name,
        strftime("%Y-%m-%d %H:%M:%S", localtime(checkpoint.modified)),
        f"{checkpoint.size / 2**20:.1f} MiB",
    ]
    told += ["milestone"] if checkpoint.milestone else []
    what = "NOT VERIFIED" if checkpoint.unknown else "DAMAGED"
    told += [f"{what}: {printable(checkpoint.damage)}"] if checkpoint.damage else []
    told += ["sound"] if checkpoint.damage == "" else []
    return "  ".join(told)


def _prune(root: Path, found: Sequence[Found], keep: int) -> int:
    from fastcyclegan.runs.checkpoint import remove

    sound = [checkpoint for checkpoint in found if not checkpoint.damage]
    if not sound:
        raise UserError(f"{printable(root)} has no sound checkpoint: nothing is removed")
    staying = sound[-keep:] + [c for c in found if c.unknown or (c in sound and c.milestone)]
    going = [c for c in found if c not in staying]
    for checkpoint in going:
        remove(checkpoint.path)
        print(f"removed {_line(checkpoint)}")
    freed = sum(checkpoint.size for checkpoint in going) / 2**20
    print(f"removed {len(going)} of {len(found)} checkpoints, {freed:.1f} MiB")
    return command.DONE


if __name__ == "__main__":
    sys.exit(command.run(main))
