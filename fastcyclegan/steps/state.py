"""What a training run must remember besides its networks, as tensors by name."""

import torch

from fastcyclegan.models import Network
from fastcyclegan.steps.cyclegan import CycleGAN

_OWNERS = {"G": ("G_A", "G_B"), "D": ("D_A", "D_B")}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def train_state(model: CycleGAN) -> dict[str, torch.Tensor]:
    """Adam's moments by parameter name, both image pools, and torch's generators under dropout.

    Names are ``G_A/model.1.weight/exp_avg``, ``pool_A/images`` and ``random/cpu``.
    """
    tensors = {}
    for name, parameter, optimiser in _parameters(model):
        for moment, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{name}/{moment}"] = value
    for domain, pool in model.pools.items():
        tensors |= {f"pool_{domain}/{name}": tensor for name, tensor in pool.state().items()}
    if model.networks["G_A"].arch.get("dropout"):
        tensors["random/cpu"] = torch.get_rng_state()
        if _device(model).type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(_device(model))
    return tensors


@torch.no_grad()
def load_train_state(model: CycleGAN, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`train_state` returned, into tensors laid out as the parameters are.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: a tensor has another shape.
    """
    for name, parameter, optimiser in _parameters(model):
        if f"{name}/step" not in tensors:
            continue
        state = {m: torch.empty_like(parameter).copy_(tensors[f"{name}/{m}"]) for m in _MOMENTS[:2]}
        state["step"] = tensors[f"{name}/step"].to(parameter.device)
        optimiser.state[parameter] = state
    for domain, pool in model.pools.items():
        own = f"pool_{domain}/"
        pool.load({k.removeprefix(own): t for k, t in tensors.items() if k.startswith(own)})
    if "random/cpu" in tensors:
        torch.set_rng_state(tensors["random/cpu"].cpu())
    if "random/cuda" in tensors and _device(model).type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"].cpu(), _device(model))
    model.refresh_weights()


def _parameters(model: CycleGAN):
    for which, names in _OWNERS.items():
        for owner in names:
            net: Network = model.networks[owner]
            for key, parameter in net.live_parameters():
                yield f"{owner}/{key}", parameter, model.optimisers[which]


def _device(model: CycleGAN) -> torch.device:
    return next(model.networks["G_A"].parameters()).device
