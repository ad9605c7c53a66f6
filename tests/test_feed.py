"""Images drawn inside of the step, where a graph captures them, are those drawn outside of it."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.data.sampler import ImageSampler
from fastcyclegan.feed import Feed
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps.capture import WARM_UP
from fastcyclegan.steps.cyclegan import STEPS
from fastcyclegan.training import Run
from test_capture import Again
from test_cyclegan import SIZE, make_model
from test_gate import everything
from test_sampler import make_set
from tiny_runs import run_on_data

BATCH = 2


class Watched(ImageSampler):
    """Notes the batches that were drawn from the host."""

    def batch(self, step):
        self.asked = [*getattr(self, "asked", []), step]
        return super().batch(step)


def trainee(device="cpu", **options):
    sets = make_set([(SIZE + 4, SIZE + 6)] * 5), make_set([(SIZE + 1, SIZE)] * 3, 1)
    options = {"crop_size": SIZE, "batch_size": BATCH, "dtype": torch.float64, **options}
    sampler = Watched(*sets, seed=3, device=device, **options)
    system = SimpleNamespace(
        config=SimpleNamespace(batch_size=BATCH),
        device=torch.device(device),
        sampler=sampler,
        model=make_model(pool_size=4),
        step=STEPS["fused"],
    )
    skips = SimpleNamespace(offset=0, batch=lambda step: sampler.batch(step + skips.offset))
    return system, skips


def trained(system, skips, feed, steps):
    """Losses of steps 1, 2, ..., back to 3 with other images after the last."""
    rows = []
    feed.go_to(1)
    for step in range(1, steps):
        rows.append(feed(step).clone())
    skips.offset = 5
    feed.go_to(3)
    for step in range(3, steps):
        rows.append(feed(step).clone())
    return torch.stack(rows)


def test_drawn_inside_or_outside():
    outside, inside, said = trainee(), trainee(), []
    plain = trained(*outside, Feed(*outside), 12)
    captured = trained(*inside, Feed(*inside, Again(), said.append), 12)
    assert torch.equal(plain, captured) and "captured" in said[0]
    wanted, got = (everything(system.model) for system, _ in (outside, inside))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert len(outside[0].sampler.asked) == 11 + 9
    assert not hasattr(inside[0].sampler, "asked")
    assert len({tuple(row.tolist()) for row in plain}) == len(plain)


def test_images_that_are_not_where_the_step_is_are_handed_over(monkeypatch):
    system, skips = trainee()
    monkeypatch.setattr(Watched, "resident", False)
    feed = Feed(system, skips, Again(), lambda line: None)
    feed.go_to(0)
    for step in range(WARM_UP + 2):
        feed(step)
    assert system.sampler.asked == list(range(WARM_UP + 2))


def test_a_feed_that_is_closed_holds_no_graph():
    """As NCCL ends only when the graphs with its messages are gone."""

    class Graphs(Again):
        def record(self, step):
            again = Again()
            recorded.append(weakref.ref(again))
            return again.record(step)

    recorded, outside = [], trainee()
    feed = Feed(*outside, Graphs(), lambda line: None)
    feed.go_to(0)
    for step in range(WARM_UP + 2):
        feed(step)
    gc.collect()
    assert recorded[0]() is not None
    feed.close()
    gc.collect()
    assert recorded[0]() is None


@pytest.mark.parametrize("graphs", [None, Again()])
def test_a_feed_that_is_closed_is_gone_with_its_last_name(graphs):
    """And with it what is on its way between processes: the others see at once that one is gone."""
    gc.disable()
    feed = Feed(*trainee(), graphs)
    left = weakref.ref(feed)
    feed.close()
    del feed
    gc.enable()
    assert left() is None


def test_a_training_closes_its_feed(here, monkeypatch):
    closed = []
    monkeypatch.setattr(Feed, "close", lambda feed: closed.append(feed))
    assert run_on_data("--steps", "1") == 0
    assert len(closed) == 1


class Launches(TorchDispatchMode, Again):
    """A stand-in for a graph, and what is computed after each of its replays, outside of them."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        Again.__init__(self)
        self.besides: list[list[str]] = []
        self.replaying = False

    def replay(self):
        self.replaying = True
        super().replay()
        self.replaying = False
        self.besides.append([])

    def __torch_dispatch__(self, op, types, arguments=(), options=None):
        if self.besides and not self.replaying:
            self.besides[-1].append(str(op))
        return op(*arguments, **(options or {}))


@pytest.mark.parametrize("policy", ["linear", "plateau"])
def test_a_step_of_a_training_is_one_launch(here, monkeypatch, policy):
    """No more than that but where an epoch ends or a row, picture or checkpoint is due.

    The metrics are those of the same training without a graph, bit for bit.
    """
    words = ("--lr_policy", policy, "--n_epochs", "2", "--n_epochs_decay", "1", "--name")
    often = ("--print_freq", "5", "--display_freq", "10", "--save_every_steps", "5")
    assert run_on_data(*words, "plain", *often) == 0
    with Launches() as graph:
        monkeypatch.setattr(Run, "_graphs", lambda run: graph)
        assert run_on_data(*words, "captured", *often) == 0
    assert len(graph.besides) == 15 - WARM_UP
    steps = dict(enumerate(graph.besides, WARM_UP + 1))
    assert not any(steps[step] for step in steps if step % 5), steps
    assert steps[5] and steps[10]
    rows = [
        [{k: x for k, x in row.items() if k != "img_per_s"} for row in read_metrics(path)]
        for path in sorted((here / "checkpoints").glob("*/metrics.jsonl"))
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 3


@pytest.mark.parametrize(("options", "resident"), [
    ({}, True),
    ({"data_on": "host"}, True),
    ({"device": "meta"}, True),
    ({"device": "meta", "data_on": "host"}, False),
])  # fmt: skip
def test_where_images_can_be_drawn_by_the_step(options, resident):
    system, _ = trainee(**options)
    assert system.sampler.resident == resident


@pytest.mark.cuda
@pytest.mark.parametrize("data_on", ["device", "host"])
def test_one_graph_draws_its_images(data_on):
    """Equal to a CPU's images, step by step, through epochs and a way back."""
    from fastcyclegan.steps.capture import CudaGraphs

    seen = {}

    def look(model, real_A, real_B, number):
        return torch.stack([real_A.double().sum(), real_B.double().sum(), number[0].double()])

    for device in ("cpu", "cuda"):
        system, skips = trainee(device, data_on=data_on)
        system.step, said = look, []
        recorder = CudaGraphs(torch.device("cuda", 0)) if device == "cuda" else None
        seen[device] = trained(system, skips, Feed(system, skips, recorder, said.append), 12)
    assert "captured" in said[0]
    torch.testing.assert_close(seen["cuda"].cpu(), seen["cpu"], rtol=1e-12, atol=1e-9)
