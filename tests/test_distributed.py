"""Several processes do what one does: the same losses, weights and image pools."""

import time
from functools import cache

import pytest
import torch

from fastcyclegan.distributed import ALONE, Group, Ranks
from fastcyclegan.launch import Launch
from fastcyclegan.models import DCGANDiscriminator, DCGANGenerator, build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.steps import cyclegan, dcgan, sequential
from fastcyclegan.steps.compilation import compile_model
from fastcyclegan.steps.model import Model
from fastcyclegan.steps.state import load_train_state, train_state
from processes import on_ranks
from test_cyclegan import SIZE, images, make_networks

BATCH = 4
KINDS = {"joint": cyclegan.CycleGAN, "sequential": sequential.SequentialCycleGAN}
CASES = {
    "fused": {"steps": 20},
    "reference": {"impl": "reference"},
    "one network after another": {"updates": "sequential"},
    "gradient penalty": {"gan_mode": "wgangp"},
    "no pool": {"pool_size": 0},
    "batch norm": {"norm": "batch"},
    "not finite": {"spoilt": (1, 3)},
    "DCGAN": {"system": "dcgan", "steps": 20},
    "DCGAN, reference": {"system": "dcgan", "impl": "reference"},
    "DCGAN, not finite": {"system": "dcgan", "spoilt": (1, 3)},
}


def make_model(
    ranks: Ranks, updates: str = "joint", norm: str = "instance", device: str = "cpu", **settings
) -> Model:
    settings = {"pool_size": 3, "seed": 5, "dtype": torch.float64, **settings}
    shape = (3, SIZE, SIZE)
    networks = make_networks(of_masters(settings["dtype"]), norm=norm)
    networks = {name: net.to(device) for name, net in networks.items()}
    return KINDS[updates](networks, cyclegan.Settings(**settings), shape, shape, ranks)


def of_masters(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def make_dcgan(
    ranks: Ranks, device: str = "cpu", dtype: torch.dtype = torch.float64
) -> dcgan.DCGAN:
    generator = torch.Generator().manual_seed(3)
    networks = {"G": DCGANGenerator(7, 4, 3, 16), "D": DCGANDiscriminator(3, 5, 16)}
    for net in networks.values():
        init_weights(net, 0.2, generator)
    networks["G_ema"] = build(networks["G"].arch).requires_grad_(False)
    networks["G_ema"].load_state_dict(networks["G"].state_dict())
    networks = {name: net.to(device, of_masters(dtype)) for name, net in networks.items()}
    return dcgan.DCGAN(networks, dcgan.Settings(ema=0.4, seed=5, dtype=dtype), ranks)


def state(model: Model) -> dict[str, torch.Tensor]:
    tensors = {
        f"{name}.{key}": value
        for name, net in model.networks.items()
        for key, value in net.state_dict().items()
    }
    return tensors | {name: tensor.clone() for name, tensor in model.memory().items()}


def trained(
    ranks: Ranks,
    steps: int = 3,
    impl: str = "fused",
    updates: str = "joint",
    spoilt: tuple[int, int] = (-1, 0),
    system: str = "cyclegan",
    scope: str | None = None,
    dtype: torch.dtype = torch.float64,
    **settings,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of all steps, weights and pools.

    ``spoilt``: a step, and its image that is nan; ``scope``: of compilation.
    """
    one_domain, rows = system == "dcgan", []
    model = (
        make_dcgan(ranks, dtype=dtype)
        if one_domain
        else make_model(ranks, updates, dtype=dtype, **settings)
    )
    for net in model.networks.values():
        net.sync_bn = ranks.many
    if scope:
        compile_model(model, scope)
    module = {"joint": cyclegan, "sequential": sequential}[updates]
    step_function = (dcgan if one_domain else module).STEPS[impl]
    for step in range(steps):
        batch = [images(BATCH, step, domain).to(dtype) for domain in (0, 1)]
        batch = [batch[0][..., :16, :16]] if one_domain else batch
        if step == spoilt[0]:
            batch[0][spoilt[1]] = torch.nan
        number = torch.arange(BATCH) + BATCH * step
        rows.append(step_function(model, *(ranks.own(x) for x in batch), number))
    return torch.stack(rows), state(model) | {"skipped": torch.tensor(model.gate.read().numbers)}


def all_cases(ranks: Ranks) -> dict[str, tuple]:
    return {name: trained(ranks, **case) for name, case in CASES.items()}


@cache
def alone() -> dict[str, tuple]:
    return all_cases(ALONE)


COMPILED = {
    "block": {"scope": "block"},
    "DCGAN, step": {"system": "dcgan", "scope": "step"},
}


def compiled(ranks: Ranks) -> dict[str, tuple]:
    return {name: trained(ranks, **case) for name, case in COMPILED.items()}


def part(
    ranks: Ranks, first: int, last: int, before: tuple | None = None
) -> tuple[torch.Tensor, tuple]:
    """Losses of some steps that begin with the weights and the state ``before``; those behind."""
    model, rows = make_model(ranks), []
    if before:
        for name, net in model.networks.items():
            net.load_state_dict(before[0][name])
        load_train_state(model, before[1])
    for step in range(first, last):
        batch = [ranks.own(images(BATCH, step, domain)) for domain in (0, 1)]
        rows.append(cyclegan.fused_step(model, *batch, torch.arange(BATCH) + BATCH * step))
    weights = {name: net.state_dict() for name, net in model.networks.items()}
    return torch.stack(rows), (weights, train_state(model))


def parts(ranks: Ranks) -> dict[str, tuple]:
    """Three steps of these processes, and five more behind three steps of one."""
    return {"first": part(ranks, 0, 3), "last": part(ranks, 3, 8, part(ALONE, 0, 3)[1])}


def turn(ranks: Ranks) -> float:
    """When this process has had its turn, for which the first one takes a while."""

    def do() -> float:
        time.sleep(0.3 if ranks.first else 0)
        return time.monotonic()

    return ranks.in_turn(do)


def everything(ranks: Ranks) -> dict[str, object]:
    return {"cases": all_cases(ranks), "parts": parts(ranks), "turn": turn(ranks)}


@cache
def together(world: int) -> list[dict[str, object]]:
    return on_ranks(world, everything)


def check_equal(everyones: list[dict[str, tuple]], truth: dict[str, tuple]) -> None:
    """To 1e-8; prints how far apart they were, for docs/scaling.md."""
    for rank, found in enumerate(everyones):
        for name, (losses, tensors) in truth.items():
            case = f"{name}, rank {rank} of {len(everyones)}"
            how = {"rtol": 0, "atol": 1e-8, "equal_nan": True}
            how["msg"] = lambda text, case=case: f"{case}: {text}"
            torch.testing.assert_close(found[name][0], losses, **how)
            torch.testing.assert_close(found[name][1], tensors, **how)
            apart = furthest({"": found[name][0]}, {"": losses}), furthest(found[name][1], tensors)
            print(f"{case}: losses {apart[0]:.0e}, weights and pools {apart[1]:.0e}")


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of two numbers."""
    differences = [(ours[k] - x).double().flatten() for k, x in theirs.items()]
    return torch.cat(differences).nan_to_num().abs().max().item()


def test_two_processes_train_as_one():
    """fp64, 20 steps, to 1e-8: losses, weights, pools, and which step was skipped."""
    assert alone()["not finite"][1]["skipped"].tolist() == [BATCH]
    assert not alone()["fused"][0].isnan().any()
    check_equal([found["cases"] for found in together(2)], alone())


@pytest.mark.slow
def test_four_processes_train_as_one():
    check_equal([found["cases"] for found in together(4)], alone())


@pytest.mark.slow
def test_two_compiled_processes_train_as_one_that_is_not():
    eager = {name: trained(ALONE, **{**case, "scope": None}) for name, case in COMPILED.items()}
    check_equal(on_ranks(2, compiled), eager)


@pytest.mark.parametrize("rank", [0, 1])
def test_another_number_of_processes_goes_on_with_a_training(rank):
    """One after two, and two after one, to 1e-8 of one that never stopped: as a checkpoint has it.

    What each process holds serves as what the first one saves: it is the same in all.
    """
    losses, truth = part(ALONE, 0, 8)
    found, exact = together(2)[rank]["parts"], {"rtol": 0, "atol": 1e-8}
    torch.testing.assert_close(found["first"][0], losses[:3], **exact)
    for again in (found["last"], part(ALONE, 3, 8, found["first"][1])):
        torch.testing.assert_close(again[0], losses[3:], **exact)
        torch.testing.assert_close(again[1], truth, **exact)


def test_the_first_process_has_its_turn_before_the_others():
    first, second = (found["turn"] for found in together(2))
    assert first <= second


@pytest.mark.parametrize(
    ("place", "turn"), [((0, 4, 0), 1), ((1, 4, 1), 3), ((2, 4, 0), 2), ((3, 4, 1), 3)]
)
def test_one_process_of_a_machine_has_its_turn_before_its_others(place, turn):
    """Two machines of two: without a shared disk the third process writes what the first has."""

    class Lone(Group):
        def _everyones(self, value):
            met.append(value)
            return [value]

    met = []
    assert Lone(*place).in_turn(lambda: len(met) + 1) == turn
    assert met == [None] * 3


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, Launch()),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}, Launch(restarts=2)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Launch(3, 4, 1)),
        ({"RANK": "x", "WORLD_SIZE": "4"}, Launch()),
    ],
)
def test_a_process_finds_its_place(told, found):
    assert Launch.of(told) == found
