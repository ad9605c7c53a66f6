"""Say whether this machine can train, and what to mend: ``python -m fastcyclegan.doctor``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastcyclegan import command
from fastcyclegan.config import DoctorConfig
from fastcyclegan.diagnosis import FAIL, Item, examine
from fastcyclegan.options import parse

PROG = "python -m fastcyclegan.doctor"


def main(argv: Sequence[str]) -> int:
    """Print every item; returns 0 if training would run, else 2."""
    config = parse(DoctorConfig, PROG, "Say whether this machine can train.", argv)
    items: list[Item] = []
    for item in examine(config.device, Path(config.checkpoints_dir)):
        items.append(item)
        if not config.json:
            for line in _lines(item):
                print(line, flush=True)
    failed = [item.name for item in items if item.verdict == FAIL]
    if config.json:
        print(json.dumps({"trains": not failed, "items": [i._asdict() for i in items]}, indent=1))
    else:
        print(f"training would not run: {', '.join(failed)}" if failed else "training would run")
    return command.BAD_INPUT if failed else command.DONE


def _lines(item: Item) -> list[str]:
    line = f"{item.verdict:4}  {item.name}: {item.found}"
    return [line] + ([f"      {item.mend}"] if item.mend else [])


if __name__ == "__main__":
    sys.exit(command.run(main))
