"""What processes that train together send each other: how much, when, in bf16, under capture."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from typing import NamedTuple

import pytest
import torch
from torch import distributed as dist

from fastcyclegan.distributed import ALONE, Group, Pending, Ranks
from fastcyclegan.steps import cyclegan, dcgan
from fastcyclegan.steps.capture import WARM_UP, CapturedStep, CudaGraphs
from fastcyclegan.steps.gradients import BUCKETS, split
from fastcyclegan.steps.model import Model
from processes import on_ranks
from test_cyclegan import SIZE, images
from test_distributed import BATCH, make_dcgan, make_model, state, trained
from test_scaling import bytes_of_a_fake

BF16 = {"CycleGAN": {}, "DCGAN": {"system": "dcgan", "steps": 8}}


class Sent(NamedTuple):
    """One message, by what torch calls it."""

    how: str
    numbers: int
    size: int
    begun: bool


class Work:
    """A message on its way, which tells when it is waited for."""

    def __init__(self, work: dist.Work, log: list) -> None:
        self._work, self._log = work, log

    def wait(self) -> None:
        self._log.append("waited")
        self._work.wait()


@contextmanager
def watched() -> Iterator[list[Sent | str]]:
    """What is sent by torch, and when that is waited for."""
    log, kept = [], {how: getattr(dist, how) for how in ("all_reduce", "all_gather")}

    def send(how: str, *given, async_op: bool = False) -> Work | None:
        sent = given[-1]
        log.append(Sent(how, sent.numel(), sent.nbytes, async_op))
        work = kept[how](*given, async_op=async_op)
        return Work(work, log) if async_op else work

    for how in kept:
        setattr(dist, how, partial(send, how))
    try:
        yield log
    finally:
        for how, function in kept.items():
            setattr(dist, how, function)


def messages(ranks: Ranks) -> list[Sent | str]:
    """Those of a bf16 step, and where in them backward comes to the first layers."""
    model = make_model(ranks, dtype=torch.bfloat16)
    batch = [ranks.own(images(BATCH, 0, domain, torch.bfloat16)) for domain in (0, 1)]
    with watched() as log:
        for name, net in model.weights.items():
            net.copies[0].register_hook(lambda gradient, name=name: log.append(name))
        cyclegan.fused_step(model, *batch, torch.arange(BATCH))
    return log


def in_bf16(ranks: Ranks) -> dict[str, tuple]:
    return {name: trained(ranks, dtype=torch.bfloat16, **case) for name, case in BF16.items()}


class Broken:
    """A stand-in for CUDA graphs, which fails while it records G's backward and sends nothing."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, step):
        return step()

    def record(self, step):
        def fails(gradient):
            raise RuntimeError("operation not permitted")

        ranks = self.model.ranks
        ranks.sum = ranks.gather = Pending
        hook = self.model.weights["G_B"].copies[0].register_hook(fails)
        try:
            step()
        finally:
            hook.remove()
            del ranks.sum, ranks.gather


def behind_a_broken_capture(ranks: Ranks) -> tuple[list[str], dict[str, torch.Tensor]]:
    """What was said of it, and weights and losses of the steps before and after."""
    model, said = make_model(ranks, pool_size=0), []
    step = CapturedStep(cyclegan.fused_step, said.append, Broken(model))
    if not ranks.many:
        step = cyclegan.fused_step
    rows = []
    for number in range(WARM_UP + 3):
        batch = [ranks.own(images(BATCH, number, domain)) for domain in (0, 1)]
        rows.append(step(model, *batch, torch.arange(BATCH) + BATCH * number))
    return said, state(model) | {"losses": torch.stack(rows)}


def everything(ranks: Ranks) -> dict[str, object]:
    broken = behind_a_broken_capture(ranks)
    return {"messages": messages(ranks), "broken": broken, "bf16": in_bf16(ranks)}


@cache
def together() -> list[dict[str, object]]:
    return on_ranks(2, everything)


def test_gradients_travel_in_a_few_messages_that_begin_during_backward():
    """Those of D before G's backward begins, and of both before their first layers are reached.

    None of them is waited for before all are on their way.
    """
    model, logs = make_model(ALONE), [found["messages"] for found in together()]
    assert logs[0] == logs[1]
    log = [x for x in logs[0] if x in model.weights or getattr(x, "how", "") == "all_reduce"]
    numbers = [x.numbers for x in log if isinstance(x, Sent)]
    sizes = {k: sum(p.numel() for p in g.masters) for k, g in model.gradients.items()}
    sums = numbers[:BUCKETS], numbers[BUCKETS : 2 * BUCKETS]
    assert [sum(part) for part in sums] == [sizes["D"], sizes["G"]]
    assert numbers[2 * BUCKETS :] == [8]  # the losses
    places = [i for i, x in enumerate(log) if isinstance(x, Sent)]
    for first, names in ((0, ("D_A", "D_B")), (BUCKETS, ("G_A", "G_B"))):
        assert places[first] < max(log.index(name) for name in names)
    assert max(log.index(name) for name in ("D_A", "D_B")) < places[BUCKETS]
    begun = [i for i, x in enumerate(logs[0]) if getattr(x, "how", "") == "all_reduce"]
    assert "waited" not in logs[0][begun[0] : begun[2 * BUCKETS - 1]]
    assert logs[0].count("waited") == 2 + 2 * BUCKETS + 1


def test_what_is_sent_is_under_way_and_has_the_bytes_that_the_page_counts():
    """Fakes in bf16, gradients and losses in fp32."""
    log = [x for x in together()[0]["messages"] if isinstance(x, Sent)]
    assert all(sent.begun for sent in log)
    fakes = [sent.size for sent in log if sent.how == "all_gather"]
    assert fakes == [BATCH // 2 * bytes_of_a_fake(SIZE)] * 2
    assert all(sent.size == 4 * sent.numbers for sent in log if sent.how == "all_reduce")


@pytest.mark.parametrize("case", BF16)
def test_two_processes_in_bf16_are_as_close_to_the_truth_as_one(case):
    """The truth is fp64: the error of losses, weights and pools at most twice that of one."""
    wanted = trained(ALONE, **BF16[case])
    allowed = apart(trained(ALONE, dtype=torch.bfloat16, **BF16[case]), wanted)
    first, second = (found["bf16"][case] for found in together())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    found = apart(first, wanted)
    for name, error in allowed.items():
        assert found[name] <= 2 * error, (name, found[name], error)


def apart(ours: tuple, theirs: tuple) -> dict[str, float]:
    """Root mean squares of differences: of the losses, of each network, of each pool."""
    parts = {"losses": [ours[0].double() - theirs[0]]}
    for name, tensor in theirs[1].items():
        if tensor.is_floating_point() and tensor.numel():
            parts.setdefault(name[:4], []).append(ours[1][name].double() - tensor)
    flat = {name: torch.cat([x.flatten() for x in parts[name]]) for name in parts}
    return {name: x.square().mean().sqrt().item() for name, x in flat.items()}


def test_split_keeps_the_order_and_has_no_more_parts_than_asked_for():
    assert split(range(6), [1, 1, 1, 1, 1, 1], 3) == [[0, 1], [2, 3], [4, 5]]
    assert split(range(4), [100, 1, 1, 1], 4) == [[0], [1, 2, 3]]
    assert split(range(1), [7], 4) == [[0]]


def test_a_capture_that_breaks_off_leaves_no_gradients():
    """D's were on their way, and some of G's were complete: the steps behind are those of one."""
    _, truth = behind_a_broken_capture(ALONE)
    for found in together():
        (line,), tensors = found["broken"]
        assert line.endswith("runs uncaptured: operation not permitted")
        torch.testing.assert_close(tensors, truth, rtol=0, atol=1e-8)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("system", ["cyclegan", "dcgan"])
def test_a_step_with_its_messages_is_captured(system, dtype, tmp_path, deterministic):
    """NCCL with one process: the bits of the step without a graph and without sums of gradients.

    The messages of a DCGAN's batch norms are in both.
    """
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        found = {ranks.many: on_a_gpu(ranks, system, dtype) for ranks in (Group(0, 1), ALONE)}
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)


def on_a_gpu(
    ranks: Ranks, system: str, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses and state of eight steps, of a group captured.

    The graph is gone on return, as NCCL waits for that.
    """
    one_domain, said, rows = system == "dcgan", [], []
    model = (make_dcgan if one_domain else make_model)(ranks, device="cuda", dtype=dtype)
    for net in model.networks.values():
        net.sync_bn = one_domain
    function = (dcgan if one_domain else cyclegan).fused_step
    with closing(CapturedStep(function, said.append, CudaGraphs(model.device))) as step:
        for number in range(8):
            batch = [images(BATCH, number, domain).to("cuda", dtype) for domain in (0, 1)]
            batch = [batch[0][..., :16, :16]] if one_domain else batch
            numbers = torch.arange(BATCH, device="cuda") + BATCH * number
            rows.append((step if ranks.many else function)(model, *batch, numbers).clone())
    assert said == ["the whole step is captured in one CUDA graph"] * ranks.many
    return torch.stack(rows), state(model)
