import torch
from torch.profiler import profile

from fastcyclegan.models import ResnetGenerator
from fastcyclegan.steps.optimiser import Weights, adam, moments

LR, BETA1 = 1e-2, 0.5


def network() -> ResnetGenerator:
    torch.manual_seed(0)
    net = ResnetGenerator(ngf=4, n_blocks=1)
    for _, p in net.live_parameters():
        torch.nn.init.normal_(p)
    return net


def gradients_of(masters: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=draw) for p in masters]


def test_weights_and_moments_are_those_of_plain_adam():
    """Whatever the layout of a gradient: it is stored as its master is laid out."""
    weights = Weights(network(), torch.float32)
    optimiser = adam([weights], LR, BETA1)
    twins = [p.detach().clone().requires_grad_() for p in weights.masters]
    plain = torch.optim.Adam(twins, lr=LR, betas=(BETA1, 0.999), foreach=False)
    for seed in range(3):
        gradients = gradients_of(weights.masters, seed)
        weights.set_gradients(gradients)
        for p, gradient in zip(twins, gradients, strict=True):
            p.grad = gradient
        optimiser.step()
        plain.step()
    torch.testing.assert_close(weights.masters, twins, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(weights.masters, twins, strict=True):
        kept = optimiser.state[ours]
        torch.testing.assert_close(kept, plain.state[theirs], rtol=1e-5, atol=1e-7)
        assert kept["exp_avg"].stride() == ours.stride()


def test_a_step_copies_no_gradient():
    weights = Weights(network(), torch.bfloat16)
    optimiser = adam([weights], LR, BETA1)
    weights.set_gradients([g.bfloat16() for g in gradients_of(weights.masters, 0)])
    assert any(not p.grad.is_contiguous() for p in weights.masters)
    with profile() as recorded:
        optimiser.step()
    names = {event.key for event in recorded.key_averages()}
    assert "aten::_fused_adam_" in names
    assert "aten::clone" not in names


def test_nothing_moves_where_the_gate_is_shut():
    weights = Weights(network(), torch.float32)
    optimiser = adam([weights], LR, BETA1)
    optimiser.found_inf = torch.ones(())
    weights.set_gradients(gradients_of(weights.masters, 0))
    changing = [*weights.masters, *moments(optimiser)]
    before = [tensor.detach().clone() for tensor in changing]
    optimiser.step()
    assert all(torch.equal(now, then) for now, then in zip(changing, before, strict=True))
