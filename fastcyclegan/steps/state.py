"""What a training run must remember besides its networks, as tensors by name."""

from collections.abc import Iterator

import torch

from fastcyclegan.steps.model import Model

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def train_state(model: Model) -> dict[str, torch.Tensor]:
    """Adam's moments by parameter name, the model's memory, and torch's generators under dropout.

    Names are ``G_A/model.1.weight/exp_avg``, ``pool_A/images`` and ``random/cpu``.
    """
    tensors = {}
    for name, parameter, optimiser in _parameters(model):
        for moment, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{name}/{moment}"] = value
    tensors |= model.memory()
    if any(net.arch.get("dropout") for net in model.networks.values()):
        tensors["random/cpu"] = torch.get_rng_state()
        if model.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(model.device)
    return tensors


@torch.no_grad()
def load_train_state(model: Model, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`train_state` returned, into tensors laid out as the parameters are.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: a tensor has another shape.
    """
    for name, parameter, optimiser in _parameters(model):
        # into the tensors that are there already, as a captured step reads and writes those
        for moment in _MOMENTS:
            optimiser.state[parameter][moment].copy_(tensors[f"{name}/{moment}"])
    model.load_memory(tensors)
    if "random/cpu" in tensors:
        torch.set_rng_state(tensors["random/cpu"].cpu())
    if "random/cuda" in tensors and model.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"].cpu(), model.device)
    model.refresh_weights()


def _parameters(
    model: Model,
) -> Iterator[tuple[str, torch.nn.Parameter, torch.optim.Optimizer]]:
    for which, names in model.OWNERS.items():
        for owner in names:
            for key, parameter in model.networks[owner].live_parameters():
                yield f"{owner}/{key}", parameter, model.optimisers[which]
