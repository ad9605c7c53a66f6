"""What the contract does not ask of this op: steps beside PyTorch's module, over 2^31 elements."""

import pytest
import torch
from torch import nn

import numerics
from fastcyclegan.kernels import dispatch
from fastcyclegan.kernels.batch_norm import batch_norm
from numerics import image, on_devices


def follow(module: nn.BatchNorm2d, momentum: float, impl: str, device: str) -> None:
    """Three steps in training and one outside, with the gradients of each."""
    mean, var = module.running_mean.clone(), module.running_var.clone()
    for seed, training in enumerate((True, True, True, False)):
        x = image((3, 5, 4, 6), torch.float64, device, seed).requires_grad_()
        dy = image(x.shape, x.dtype, device, seed + 9)
        module.train(training)
        expected = module(x.contiguous())
        affine = (module.weight, module.bias)
        y = batch_norm(x, *affine, mean, var, training=training, momentum=momentum, impl=impl)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close((mean, var), (module.running_mean, module.running_var))
        inputs = (x, *affine)
        grads = (torch.autograd.grad(t, inputs, dy) for t in (y, expected))
        for found, truth in zip(*grads, strict=True):
            torch.testing.assert_close(found, truth)


def module_with_a_past(momentum: float, device: str) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(5, momentum=momentum, device=device, dtype=torch.float64)
    for seed, t in enumerate((module.weight, module.bias, module.running_mean), 20):
        t.data.copy_(image((1, 5, 1, 1), t.dtype, device, seed).flatten())
    return module


@pytest.mark.parametrize("momentum", (0.1, 0.7))
def test_reference_follows_the_module(momentum):
    follow(module_with_a_past(momentum, "cpu"), momentum, "ref", "cpu")


@on_devices
@pytest.mark.parametrize("momentum", (0.1, 0.7))
def test_kernels_follow_the_module(momentum, device):
    follow(module_with_a_past(momentum, device), momentum, "triton", device)


@on_devices
def test_many_samples_of_one_pixel_and_one_of_many(device):
    """Channels_last both: the division into runs depends on the number of pixels alone."""
    x = image((1, 4, 40, 30), torch.float32, device)
    many = x.permute(2, 3, 0, 1).reshape(1200, 4, 1, 1)
    y, expected = (batch_norm(t, act="leaky_relu", impl="triton") for t in (many, x))
    assert torch.equal(y.flatten(1), expected.permute(0, 2, 3, 1).reshape(1200, 4))


@on_devices
def test_statistics_of_the_forward_serve_its_backward(device):
    """Also where the running ones, used outside training, have moved in between."""
    x = image((2, 5, 4, 3), torch.float32, device).requires_grad_()
    mean, var = torch.zeros(5, device=device), torch.ones(5, device=device)
    y = batch_norm(x, None, None, mean, var, training=False, act="relu", impl="triton")
    mean += 100
    var *= 100
    dx = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    torch.testing.assert_close(dx, (x > 0) * (1 + 1e-5) ** -0.5)


@pytest.mark.cuda
def test_more_than_2_to_the_31_elements():
    x = torch.randn((18, 512, 1000, 256), device="cuda", dtype=torch.bfloat16)
    x = (x * 2 + 1).permute(0, 3, 1, 2).requires_grad_()
    assert x.numel() > 2**31
    y = batch_norm(x, act="relu")
    torch.testing.assert_close(
        y[-1].float(), ((x[-1].float() - 1) / 2).relu(), rtol=2**-7, atol=2e-2
    )
    dx = torch.autograd.grad(y, x, y)[0]
    # Of a normal variable t: relu(t) - E[relu(t)] - t E[t relu(t)], over its deviation.
    t = (x[-1].float() - 1) / 2
    wanted = (t.relu() - (2 * torch.pi) ** -0.5 - t / 2) / 2
    torch.testing.assert_close(dx[-1].float(), wanted, rtol=2**-6, atol=2e-2)


if not dispatch.interpreted():

    def test_under_interpreter():
        assert numerics.run_under_interpreter(__file__) == 4
