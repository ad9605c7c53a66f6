"""Going on from a checkpoint: which one, and everything in it put back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcyclegan.data.images import one_line
from fastcyclegan.errors import UserError
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.steps.model import Model
from fastcyclegan.steps.state import load_train_state


def newest(folder: RunFolder, say: Callable[[str], None]) -> tuple[int, Path] | None:
    """(step, folder) of the newest sound checkpoint, or None in a run without any.

    Raises UserError where there are some and none is sound: they are not trained over.
    """
    passed_over = []
    found = latest_checkpoint(folder, on_damaged=lambda *both: passed_over.append(both))
    for path, reason in passed_over:
        say(f"warning: checkpoint {path.name} is passed over: {reason}")
    if passed_over and not found:
        raise UserError(
            f"no checkpoint in {folder.ckpt} is sound: give another --name, or remove that folder "
            "to start this run again"
        )
    return found


def restore(model: Model, load: Callable[[Tensor, Mapping[str, Any]], None], path: Path) -> None:
    """Put back what the checkpoint ``path`` holds: ``model``, the rest by ``load``.

    Raises UserError when it is damaged, or of other networks.
    """
    weights, tensors, state = load_checkpoint(path)
    try:
        for name, net in model.networks.items():
            net.load_state_dict(weights[name])
        load_train_state(model, tensors)
        load(tensors["metrics/sums"], state)
    except (KeyError, RuntimeError, TypeError, AttributeError) as problem:
        raise UserError(f"{path} does not fit these options: {one_line(str(problem))}") from None
