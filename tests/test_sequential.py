"""The article's step: four updates in a row, each from the networks as the one before left them."""

import copy

import pytest
import torch

from fastcyclegan.kernels.image_pool import draw
from fastcyclegan.kernels.philox import POOL_A, POOL_B
from fastcyclegan.steps.cyclegan import STEPS as JOINT
from fastcyclegan.steps.cyclegan import CycleGAN, Settings
from fastcyclegan.steps.losses import NAMES
from fastcyclegan.steps.sequential import ORDER, STEPS, SequentialCycleGAN
from fastcyclegan.steps.state import load_train_state, train_state
from test_cyclegan import SIZE, images, make_networks

SHAPE = (3, SIZE, SIZE)


def make_model(dtype: torch.dtype = torch.float64, norm: str = "instance", **changed):
    settings = {"pool_size": 3, "seed": 5, "dtype": dtype, "lambda_identity": 0.0, **changed}
    networks = make_networks(dtype, norm=norm)
    return SequentialCycleGAN(networks, Settings(**settings), SHAPE, SHAPE)


def batch(step: int, n: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    real = (images(n, step, domain).to(dtype) for domain in (0, 1))
    return (*real, torch.arange(n) + step * n)


class PlainPool:
    """Filled first; then a coin says whether a stored image is shown, whose place the new takes."""

    def __init__(self, capacity: int, stream: int) -> None:
        self.capacity, self.stream, self.stored, self.shown_old = capacity, stream, [], 0

    def query(self, image: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        new = image.detach().clone()
        if len(self.stored) < self.capacity:
            self.stored += [new]
            return new
        if not self.capacity:
            return new
        coin, slot = (int(x) for x in draw(5, self.stream, number, self.capacity))
        if not coin:
            return new
        old, self.stored[slot] = self.stored[slot], new
        self.shown_old += 1
        return old


def plain_step(nets, optimisers, pools, A, B, number, lambda_A=10.0, lambda_B=10.0):
    """As the article words it, network by network, with torch's Adam for each."""
    G_A, D_A, G_B, D_B = (nets[name] for name in ORDER)
    losses = {}

    def cycles():
        cycle_A = lambda_A * (G_B(G_A(A)) - A).abs().mean()
        return cycle_A, lambda_B * (G_A(G_B(B)) - B).abs().mean()

    def update(name, loss):
        optimisers[name].zero_grad()
        loss.backward()
        optimisers[name].step()
        return loss

    def judged(D, real, fake):
        return 0.5 * ((D(real) - 1).square().mean() + D(fake.detach()).square().mean())

    fake_B = G_A(A)
    losses["G_A"], (losses["cycle_A"], other) = (D_A(fake_B) - 1).square().mean(), cycles()
    update("G_A", losses["G_A"] + losses["cycle_A"] + other)
    losses["D_A"] = update("D_A", judged(D_A, B, pools["B"].query(fake_B, number)))
    fake_A = G_B(B)
    losses["G_B"], (other, losses["cycle_B"]) = (D_B(fake_A) - 1).square().mean(), cycles()
    update("G_B", losses["G_B"] + other + losses["cycle_B"])
    losses["D_B"] = update("D_B", judged(D_B, A, pools["A"].query(fake_A, number)))
    return [losses.get(name, torch.zeros(())).item() for name in NAMES]


@pytest.mark.parametrize(("pool_size", "steps"), [(0, 3), (3, 12)])
@pytest.mark.parametrize("implementation", STEPS)
def test_the_step_is_four_plain_updates_in_order(implementation, pool_size, steps):
    """Losses and weights after some steps, beside a step written down from the words alone."""
    model = make_model(pool_size=pool_size, lambda_A=9.0, lambda_B=11.0)
    pools = {"A": PlainPool(pool_size, POOL_A), "B": PlainPool(pool_size, POOL_B)}
    nets = copy.deepcopy(model.networks)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    optimisers = {name: torch.optim.Adam(net.parameters(), **adam) for name, net in nets.items()}
    for step in range(steps):
        A, B, number = batch(step, 1)
        row = STEPS[implementation](model, A, B, number)
        wanted = plain_step(nets, optimisers, pools, A, B, number, 9.0, 11.0)
        assert row.tolist() == pytest.approx(wanted, rel=1e-8)
    # of the nine steps after the filling about half show an older image
    assert all(1 < pool.shown_old < 9 for pool in pools.values()) or pool_size == 0
    for name, net in model.networks.items():
        truth = dict(nets[name].named_parameters())
        for key, parameter in net.live_parameters():
            # Adam makes 2e-4 of a gradient of any size, so rounding shows in the smallest
            torch.testing.assert_close(parameter, truth[key], rtol=1e-6, atol=1e-9, msg=key)


def test_the_joint_step_is_another_one():
    """The comparison above would notice: G_B's cycle loss sees a G_A that has moved."""
    model = make_model(pool_size=0)
    joint = CycleGAN(copy.deepcopy(model.networks), model.settings, SHAPE, SHAPE)
    rows = [STEPS["fused"](model, *batch(0, 1)), JOINT["fused"](joint, *batch(0, 1))]
    other = {name for name, a, b in zip(NAMES, *rows, strict=True) if abs(a - b) > 1e-9}
    assert other == {"cycle_B"}
    for name in ORDER:
        pairs = zip(model.weights[name].masters, joint.weights[name].masters, strict=True)
        same = [bool((a.grad - b.grad).abs().max() < 1e-8 * b.grad.abs().max()) for a, b in pairs]
        assert not any(same) if name == "G_B" else all(same), name


@pytest.mark.parametrize(
    ("n", "norm", "changed"),
    [
        (1, "instance", {}),
        (2, "instance", {"lambda_identity": 0.5}),
        (2, "batch", {"lambda_identity": 0.5}),
        (1, "none", {}),
        (2, "instance", {"gan_mode": "wgangp"}),
        (1, "instance", {"gan_mode": "vanilla"}),
    ],
)
def test_fused_equals_reference_in_fp64(n, norm, changed):
    """Losses, every gradient and every statistic, over steps that fill and pass the pool."""
    models = {implementation: make_model(norm=norm, **changed) for implementation in STEPS}
    for step in range(5):
        rows = [STEPS[name](model, *batch(step, n)) for name, model in models.items()]
        torch.testing.assert_close(rows[0], rows[1], rtol=1e-9, atol=1e-12)
        for name in ORDER:
            masters = [models[x].weights[name].masters for x in ("fused", "reference")]
            for ours, theirs in zip(*masters, strict=True):
                size = theirs.grad.abs().max()
                assert (ours.grad - theirs.grad).abs().max() < 1e-8 * size + 1e-15, name
    for name, net in models["reference"].networks.items():
        for key, value in models["fused"].networks[name].named_buffers():
            truth = dict(net.named_buffers())[key]
            torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-12, msg=key)


def test_only_the_updated_network_gets_gradients():
    """No gradient of the other three networks' weights is computed."""
    model, touched = make_model(), []
    for name in ORDER:
        for master in model.weights[name].masters:
            master.register_hook(lambda gradient, name=name: touched.append(name))
    STEPS["fused"](model, *batch(0, 1))
    counts = {name: touched.count(name) for name in ORDER}
    assert counts == {name: len(model.weights[name].masters) for name in ORDER}
    assert list(dict.fromkeys(touched)) == list(ORDER)


def test_each_network_has_moments_of_its_own_which_resume():
    model, fresh = make_model(), make_model()
    for step in range(2):
        STEPS["fused"](model, *batch(step, 1))
    tensors = {key: value.clone() for key, value in train_state(model).items()}
    steps = {key: value for key, value in tensors.items() if key.endswith("/step")}
    assert len(steps) == sum(len(model.weights[name].masters) for name in ORDER)
    assert all(x == 2 for x in steps.values())
    for name, net in model.networks.items():
        fresh.networks[name].load_state_dict(net.state_dict())
    load_train_state(fresh, tensors)
    rows = [STEPS["fused"](x, *batch(2, 1)) for x in (model, fresh)]
    assert torch.equal(*rows)


def test_bf16_copies_follow_the_masters():
    settings = Settings(dtype=torch.bfloat16, lambda_identity=0.0)
    model = SequentialCycleGAN(make_networks(torch.float32), settings, SHAPE, SHAPE)
    row = STEPS["fused"](model, *batch(0, 1, torch.bfloat16))
    assert row.dtype == torch.float32 and torch.isfinite(row).all()
    for weights in model.weights.values():
        for master, narrow in zip(weights.masters, weights.copies, strict=True):
            assert torch.equal(narrow, master.bfloat16())


@pytest.mark.parametrize("implementation", STEPS)
def test_a_step_that_is_not_finite_changes_nothing(implementation):
    """A pixel that is not a number: weights, moments, pools and statistics stay as they were."""
    model, calm = make_model(norm="batch"), make_model(norm="batch")
    step = STEPS[implementation]
    for each in (model, calm):
        step(each, *batch(0, 2))
    A, B, number = batch(1, 2)
    A[1, 0, 3, 3] = float("nan")
    row = step(model, A, B, number)
    assert not torch.isfinite(row).all() and model.gate.read().count == 1
    rows = [step(each, *batch(2, 2)) for each in (model, calm)]
    assert torch.equal(*rows)
    ours, theirs = train_state(model), train_state(calm)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for name, net in calm.networks.items():
        state = model.networks[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
