"""The gate: a step with NaN or Inf anywhere leaves no trace but its number."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.steps import gate
from fastcyclegan.steps.capture import WARM_UP, CapturedStep, CudaGraphs
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from test_cyclegan import images, make_model

NAN, INF = float("nan"), float("inf")


def everything(model: CycleGAN) -> dict[str, torch.Tensor]:
    """A copy of all that a step may change, by name."""
    found = {}
    for name, net in model.networks.items():
        found |= {f"{name}/{key}": value for key, value in net.state_dict().items()}
    for name, weights in model.weights.items():
        found |= {f"{name}/copy{i}": copy for i, copy in enumerate(weights.copies)}
    for which, optimiser in model.optimisers.items():
        for i, state in enumerate(optimiser.state.values()):
            found |= {f"{which}/{i}/{key}": value for key, value in state.items()}
    for domain, pool in model.pools.items():
        found |= {f"pool_{domain}": pool.images, f"count_{domain}": pool.count}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def advance(model, step, impl="fused", n=2, dtype=torch.float32, spoil=None):
    batch = [images(n, step, domain, dtype) for domain in (0, 1)]
    if spoil is not None:
        batch[1][-1, -1, 3, 4] = spoil
    return STEPS[impl](model, *batch, torch.arange(n) + step * n)


@contextmanager
def spoilt_weight(model, name, value):
    master, copy = model.weights[name].masters[0], model.weights[name].copies[0]
    kept = master.detach().clone()
    master.data[0] = value
    model.refresh_weights()
    yield
    master.data.copy_(kept)
    model.refresh_weights()
    assert copy.isfinite().all()


@contextmanager
def spoilt_gradient(model, name, value):
    """The last gradient of a network; its losses stay finite."""
    master = model.weights[name].masters[-1]
    judge = model.gate.judge

    def judged(losses, masters):
        assert losses.isfinite().all()
        master.grad.view(-1)[0] = value
        judge(losses, masters)

    model.gate.judge = judged
    yield
    del model.gate.judge


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("impl", STEPS)
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_changes_nothing(value, norm, impl):
    """Data, weights, gradients; before the pools are full, while they fill up, and after."""
    model, clean = (make_model(torch.float32, norm) for _ in range(2))
    spoils = (
        *(lambda n=name: spoilt_weight(model, n, value) for name in ("G_B", "D_A")),
        *(lambda n=name: spoilt_gradient(model, n, value) for name in ("G_A", "D_B")),
    )
    for step in range(3):
        before = everything(model)
        advance(model, step, impl, spoil=value)
        assert same(everything(model), before)
        spoil = spoils[(step + (impl == "fused")) % len(spoils)]
        with spoil():
            advance(model, step, impl)
        assert same(everything(model), before)
        assert model.gate.read() == gate.Skipped(2, (2 * step, 2 * step), 2)
        losses, wanted = (advance(m, step, impl) for m in (model, clean))
        assert torch.equal(losses, wanted) and same(everything(model), everything(clean))
        assert model.gate.read() == gate.Skipped(0, (), 0)


@pytest.mark.parametrize("name", ["G_A", "G_B", "D_A", "D_B"])
def test_one_gradient_of_any_network_shuts_the_gate_for_all(name):
    model = make_model(dtype=torch.float32)
    advance(model, 0)
    before = everything(model)
    with spoilt_gradient(model, name, INF):
        advance(model, 1)
    assert same(everything(model), before)
    advance(model, 1)
    assert not same(everything(model), before)


def test_a_loss_alone_shuts_the_gate():
    model = make_model(dtype=torch.float32)
    advance(model, 0)
    before = everything(model)
    for losses in ([0.0, NAN], [INF, 0.0]):
        model.begin_step()
        model.move(torch.tensor(losses), "G", "D")
        model.end_step(torch.arange(1))
        assert same(everything(model), before) and model.gate.shut == 1
    model.begin_step()
    model.move(torch.tensor([0.0, 1.0]), "G", "D")
    assert not same(everything(model), before)


def test_bf16_copies_stay_as_they_are():
    model = make_model(dtype=torch.float32)
    model = CycleGAN(
        model.networks, Settings(dtype=torch.bfloat16, pool_size=2), (3, 32, 32), (3, 32, 32)
    )
    advance(model, 0, dtype=torch.bfloat16)
    before = everything(model)
    advance(model, 1, dtype=torch.bfloat16, spoil=NAN)
    assert same(everything(model), before)
    assert model.gate.read().numbers == (2,)


def test_the_count_goes_on_where_the_list_is_full(monkeypatch):
    monkeypatch.setattr(gate, "LISTED", 3)
    model = make_model(dtype=torch.float32)
    for step in range(5):
        advance(model, step, n=1, spoil=NAN)
    assert model.gate.read() == gate.Skipped(5, (0, 1, 2), 5)
    advance(model, 5, n=1, spoil=NAN)
    assert model.gate.read() == gate.Skipped(1, (5,), 6)
    model.gate.load(4)
    advance(model, 6, n=1, spoil=NAN)
    assert model.gate.read() == gate.Skipped(1, (6,), 5)


class NoSync(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_host_waits_for_nothing(norm, monkeypatch):
    def refuse(self):
        raise AssertionError

    for name in ("tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    model = make_model(dtype=torch.float32, norm=norm)
    with NoSync():
        for step in range(3):
            advance(model, step, spoil=NAN if step == 1 else None)
    with pytest.raises(AssertionError), NoSync():
        float(model.gate.shut)


class Launches(TorchDispatchMode):
    """Counts the operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not name.startswith(("view", "select", "slice", "detach", "empty_like"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shut", [False, True])
def test_any_bits_are_put_back_in_a_few_launches(shut):
    odd, others = torch.tensor([NAN, INF, -0.0, 1.0]), torch.tensor([-INF, 2.0, NAN, 0.0])
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    numbers = torch.tensor([0, -1, 2**62 + 1, 7])
    before = [odd.to(d) for d in dtypes for _ in range(20)] + [numbers, torch.tensor(NAN)]
    after = [others.to(d) for d in dtypes for _ in range(20)] + [numbers.flip(0), torch.tensor(1.0)]
    tensors, guard = [x.clone() for x in before], gate.Gate([], torch.device("cpu"))
    launches = Launches()
    with launches:
        guard.begin(tensors)
    for tensor, new in zip(tensors, after, strict=True):
        tensor.copy_(new)
    guard.shut.fill_(shut)
    with launches:
        guard.end(torch.arange(1))
    for tensor, wanted in zip(tensors, before if shut else after, strict=True):
        assert torch.equal(*(next(gate.by_width([x]))[0] for x in (tensor, wanted)))
    assert launches.count < 40 < len(tensors)


@pytest.mark.cuda
@pytest.mark.parametrize("captured", [False, True])
def test_on_a_gpu_a_step_that_is_not_finite_changes_nothing(captured):
    networks = {name: net.cuda() for name, net in make_model(torch.float32).networks.items()}
    settings, shape = Settings(dtype=torch.bfloat16, pool_size=2), (3, 32, 32)
    model, step, clean = CycleGAN(networks, settings, shape, shape), STEPS["fused"], 1
    if captured:
        step, clean = CapturedStep(step, print, CudaGraphs(model.device)), WARM_UP + 1
    for number, spoil in enumerate((*[None] * clean, NAN, None, INF)):
        before = everything(model)
        batch = [images(2, number, domain, torch.bfloat16).cuda() for domain in (0, 1)]
        if spoil is not None:
            batch[0][0, 0, 0, 0] = spoil
        step(model, *batch, torch.arange(2, device="cuda") + 2 * number)
        assert same(everything(model), before) == (spoil is not None)
    assert model.gate.read() == gate.Skipped(2, (2 * clean, 2 * clean + 4), 1)
