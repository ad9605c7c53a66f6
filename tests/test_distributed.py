"""Several processes do what one does: the same losses, weights, files and ends."""

import socket
from functools import cache
from pathlib import Path

import pytest
import torch

from fastcyclegan.device import own_device
from fastcyclegan.distributed import ALONE, Group, Ranks, join
from fastcyclegan.errors import UserError
from fastcyclegan.launch import Launch
from fastcyclegan.models import DCGANDiscriminator, DCGANGenerator, build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps import cyclegan, dcgan, sequential
from fastcyclegan.steps.capture import CapturedStep, CudaGraphs
from fastcyclegan.steps.gradients import BUCKETS, split
from fastcyclegan.steps.model import Model
from processes import on_ranks, train_on_ranks
from test_capture import deterministic  # noqa: F401
from test_cyclegan import SIZE, images, make_networks
from tiny_runs import TINY, final_state, make_images, run_on_data

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
    networks = make_networks(settings["dtype"], norm=norm)
    networks = {name: net.to(device) for name, net in networks.items()}
    return KINDS[updates](networks, cyclegan.Settings(**settings), shape, shape, ranks)


def make_dcgan(ranks: Ranks) -> dcgan.DCGAN:
    generator = torch.Generator().manual_seed(3)
    networks = {"G": DCGANGenerator(7, 4, 3, 16), "D": DCGANDiscriminator(3, 5, 16)}
    for net in networks.values():
        init_weights(net, 0.2, generator)
    networks["G_ema"] = build(networks["G"].arch).requires_grad_(False)
    networks["G_ema"].load_state_dict(networks["G"].state_dict())
    for net in networks.values():
        net.double()
    return dcgan.DCGAN(networks, dcgan.Settings(ema=0.4, seed=5, dtype=torch.float64), ranks)


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
    **settings,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of all steps, weights and pools; ``spoilt``: a step, and its image that is nan."""
    one_domain, rows = system == "dcgan", []
    model = make_dcgan(ranks) if one_domain else make_model(ranks, updates, **settings)
    for net in model.networks.values():
        net.sync_bn = ranks.many
    module = {"joint": cyclegan, "sequential": sequential}[updates]
    step_function = (dcgan if one_domain else module).STEPS[impl]
    for step in range(steps):
        batch = [images(BATCH, step, domain) for domain in (0, 1)]
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


def bucket_log(ranks: Ranks) -> list[str | int]:
    """What a step sends, in numbers, and where in that backward comes to the first layers."""
    model, log = make_model(ranks), []
    send = ranks.sum
    ranks.sum = lambda tensor: log.append(tensor.numel()) or send(tensor)
    for name, net in model.weights.items():
        net.copies[0].register_hook(lambda gradient, name=name: log.append(name))
    A, B = images(BATCH, 0, 0), images(BATCH, 0, 1)
    cyclegan.fused_step(model, ranks.own(A), ranks.own(B), torch.arange(BATCH))
    del ranks.sum
    return log


def everything(ranks: Ranks) -> dict[str, object]:
    return {"cases": all_cases(ranks), "buckets": bucket_log(ranks)}


@cache
def together(world: int) -> list[dict[str, object]]:
    return on_ranks(world, everything)


def check_equal(world: int) -> None:
    for rank, found in enumerate(together(world)):
        for name, (losses, tensors) in alone().items():
            case = f"{name}, rank {rank} of {world}"
            how = {"rtol": 0, "atol": 1e-8, "equal_nan": True}
            how["msg"] = lambda text, case=case: f"{case}: {text}"
            torch.testing.assert_close(found["cases"][name][0], losses, **how)
            torch.testing.assert_close(found["cases"][name][1], tensors, **how)


def test_two_processes_train_as_one():
    """fp64, 20 steps, to 1e-8: losses, weights, pools, and which step was skipped."""
    assert alone()["not finite"][1]["skipped"].tolist() == [BATCH]
    assert not alone()["fused"][0].isnan().any()
    check_equal(2)


@pytest.mark.slow
def test_four_processes_train_as_one():
    check_equal(4)


def test_gradients_travel_in_a_few_messages_that_begin_during_backward():
    """Those of D before G's backward begins, and of both before their first layers are reached."""
    model, logs = make_model(ALONE), [found["buckets"] for found in together(2)]
    assert logs[0] == logs[1]
    numbers = [x for x in logs[0] if isinstance(x, int)]
    sizes = {k: sum(p.numel() for p in g.masters) for k, g in model.gradients.items()}
    sums = numbers[:BUCKETS], numbers[BUCKETS : 2 * BUCKETS]
    assert [sum(part) for part in sums] == [sizes["D"], sizes["G"]]
    assert numbers[2 * BUCKETS :] == [8]  # the losses
    for first, names in ((0, ("D_A", "D_B")), (BUCKETS, ("G_A", "G_B"))):
        last = max(logs[0].index(name) for name in names)
        assert logs[0].index(numbers[first]) < last


def test_split_keeps_the_order_and_has_no_more_parts_than_asked_for():
    assert split(range(6), [1, 1, 1, 1, 1, 1], 3) == [[0, 1], [2, 3], [4, 5]]
    assert split(range(4), [100, 1, 1, 1], 4) == [[0], [1, 2, 3]]
    assert split(range(1), [7], 4) == [[0]]


def words(*more: str) -> list[str]:
    return [*TINY, "--dataroot", "data", "--batch_size", "2", *more]


BAD = {
    "not among two": (words("--batch_size", "3"), "--batch_size 3 cannot be divided among 2"),
    "an option": ({0: words(), 1: words("--lr", "0.1")}, "rank 1 has another --lr (0.1) than"),
    "images": ({0: words(), 1: words("--dataroot", "other")}, "rank 1 has another set of images"),
    "dropout": (words("--dropout"), "--dropout is for one process"),
    "a typing error": (words("--lamda_A", "3"), "--lamda_A: unknown option"),
    "of one": ({0: words(), 1: words("--lamda_A", "3")}, "rank 1: --lamda_A: unknown option"),
    "no folder": ({0: words(), 1: words("--dataroot", "no")}, "rank 1: --dataroot no"),
    "a plan": (words("--dry_run"), "--dry_run is about one process"),
    "a name": (words("--name", "one", "--lr", "0.1"), "run checkpoints/one has another"),
}  # fmt: skip
GOOD = {
    "whole": words("--name", "whole", "--steps", "6"),
    "begun": words("--name", "parts", "--steps", "3"),
    "continued": words("--name", "parts", "--steps", "6"),
    "begun alone": words("--name", "one", "--steps", "6"),
    "finished": words("--name", "one", "--steps", "6"),
}


def test_the_command_with_two_processes(here):
    """Its files, its resumes in both directions, and its one line for bad input."""
    make_images(here / "other/trainA", 5, seed=7)
    make_images(here / "other/trainB", 3, seed=8)
    alone = ("--batch_size", "2", "--name")
    assert run_on_data(*alone, "one", "--steps", "3") == 0
    assert run_on_data(*alone, "truth", "--steps", "6") == 0
    cases = [*GOOD.values(), *(case for case, _ in BAD.values())]
    ends = dict(zip([*GOOD, *BAD], train_on_ranks(2, here, cases), strict=True))
    for case in GOOD:
        assert [end.code for end in ends[case]] == [0, 0], (case, ends[case])
        assert ends[case][1].out == "" and ends[case][0].err == "", case
    assert "2 processes, each with 1 image of every batch of 2" in ends["whole"][0].out
    assert "continuing run checkpoints/one at step 3" in ends["begun alone"][0].out
    assert "is finished at step 6" in ends["finished"][0].out
    runs = {name: final_state(here / "checkpoints" / name) for name in ("whole", "parts", "one")}
    truth = final_state(here / "checkpoints/truth")
    check_files(here / "checkpoints", truth, runs)
    for case, (_, said) in BAD.items():
        assert [end.code for end in ends[case]] == [2, 2], (case, ends[case])
        first, second = (end.err for end in ends[case])
        assert first.startswith(f"error: {said}") and first.count("\n") == 1, (case, first)
        assert second == "" == ends[case][1].out, (case, second)
    assert sorted(p.name for p in (here / "checkpoints").iterdir()) == [
        "one", "parts", "truth", "whole"
    ]  # fmt: skip


def check_files(place: Path, truth: tuple, runs: dict[str, tuple]) -> None:
    """Bit-equal for the same number of processes, close to those of one; metrics of the batch."""
    rows = {name: read_metrics(place / name / "metrics.jsonl") for name in (*runs, "truth")}
    numbers = {
        name: [{k: x for k, x in row.items() if k not in ("kind", "img_per_s")} for row in found]
        for name, found in rows.items()
    }
    assert numbers["whole"] == numbers["parts"] and len(numbers["truth"]) > 3
    for name in runs:
        for ours, theirs in zip(numbers[name], numbers["truth"], strict=True):
            # in fp32, of images of noise
            assert ours == pytest.approx(theirs, rel=3e-2), name
    for networks, others in zip(runs["whole"][:2], runs["parts"][:2], strict=True):
        torch.testing.assert_close(networks, others, rtol=0, atol=0)
    for name in runs:
        torch.testing.assert_close(runs[name][0], truth[0], rtol=0, atol=2e-3)
        assert runs[name][1].keys() == truth[1].keys()
        assert (place / name / "previews/step-00000004.png").is_file()


def test_a_taken_port_and_missing_gpus_are_told(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(UserError, match=r"port 127.0.0.1:\d+ is taken by another program"):
            join(Launch(0, 2), 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"sees 2 CUDA GPUs .* --nproc_per_node=2"):
        own_device("auto", Launch(2, 3, 2))
    with pytest.raises(UserError, match="each process takes the GPU of its own number; use cuda"):
        own_device("cuda:1", Launch(1, 2, 1))
    assert own_device("cpu", Launch(2, 3, 2)) == torch.device("cpu")


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


@pytest.mark.cuda
def test_a_step_with_its_messages_is_captured(tmp_path, deterministic):  # noqa: F811
    """NCCL with one process: the losses and weights of the step without messages."""
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    found, said = {}, []
    for ranks in (Group(0, 1), ALONE):
        model = make_model(ranks, device="cuda", dtype=torch.float32)
        step = CapturedStep(cyclegan.fused_step, said.append, CudaGraphs(model.device))
        rows = []
        for number in range(8):
            batch = (images(BATCH, number, domain).float().cuda() for domain in (0, 1))
            numbers = torch.arange(BATCH, device="cuda") + BATCH * number
            rows.append(step(model, *batch, numbers).clone())
        found[ranks.many] = torch.stack(rows), state(model)
    torch.distributed.destroy_process_group()
    assert said == ["the whole step is captured in one CUDA graph"] * 2
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-5)
