"""The two implementations of the CycleGAN step are the same mathematics."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.models import Network, NLayerDiscriminator, ResnetGenerator
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings
from fastcyclegan.steps.losses import NAMES, gan_loss

SIZE = 32


def make_networks(
    dtype: torch.dtype, seed: int = 0, norm: str = "instance", dropout: bool = False
) -> dict[str, Network]:
    generator = torch.Generator().manual_seed(seed)
    networks = {
        "G_A": ResnetGenerator(ngf=4, n_blocks=2, norm=norm, dropout=dropout),
        "G_B": ResnetGenerator(ngf=4, n_blocks=2, norm=norm, dropout=dropout),
        "D_A": NLayerDiscriminator(ndf=4, norm=norm),
        "D_B": NLayerDiscriminator(ndf=4, norm=norm),
    }
    for net in networks.values():
        # wider than JZ's 0.02, so that activations and gradients of the small nets are not tiny
        init_weights(net, 0.2, generator)
        net.to(dtype)
    return networks


def make_model(dtype: torch.dtype = torch.float64, norm: str = "instance", **settings) -> CycleGAN:
    shape = (3, SIZE, SIZE)
    settings = Settings(**{"pool_size": 3, "seed": 5, "dtype": dtype, **settings})
    return CycleGAN(make_networks(dtype, norm=norm), settings, shape, shape)


def images(n: int, step: int, domain: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * domain + step)
    x = torch.rand((n, 3, SIZE, SIZE), generator=generator, dtype=dtype) * 2 - 1
    return x.contiguous(memory_format=torch.channels_last)


def run(implementation: str, model: CycleGAN, n: int, steps: int) -> tuple[list, list]:
    """Losses and all gradients of each step."""
    losses, gradients = [], []
    for step in range(steps):
        number = torch.arange(n) + step * n
        row = STEPS[implementation](model, images(n, step, 0), images(n, step, 1), number)
        losses.append(row)
        masters = [(k, p) for k, w in model.weights.items() for p in w.masters]
        gradients.append([(k, p.grad.clone()) for k, p in masters])
    return losses, gradients


@pytest.mark.parametrize(
    ("n", "identity", "mode"),
    [
        (1, 0.5, "lsgan"),
        (2, 0.5, "lsgan"),
        (1, 0.0, "lsgan"),
        (2, 0.0, "lsgan"),
        (1, 0.5, "vanilla"),
        (2, 0.5, "wgangp"),
    ],
)
def test_fused_equals_reference_in_fp64(n, identity, mode):
    """Losses and every gradient tensor agree to 1e-9, over steps that fill and pass the pool."""
    settings = {"lambda_identity": identity, "lambda_A": 9.0, "lambda_B": 11.0, "gan_mode": mode}
    wanted, got = (
        run(implementation, make_model(**settings), n, steps=6)
        for implementation in ("reference", "fused")
    )
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(got[1], wanted[1], strict=True):
        assert len(ours) == len(theirs) == 2 * (3 + 4 + 4) + 2 * (2 + 3 + 2)
        still = 0
        for (name, gradient), (_, truth) in zip(ours, theirs, strict=True):
            size = truth.abs().max()
            assert (gradient - truth).abs().max() < 1e-9 * size + 1e-15, name
            still += size < 1e-15
        # wgangp cannot see the last bias of a discriminator: it moves real and fake alike
        assert still == (2 if mode == "wgangp" else 0)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("identity", [0.5, 0.0])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_fused_equals_reference_with_other_norms(norm, identity, n):
    """Batch norm too: losses, gradients, and statistics that depend on the order of passes."""
    models = [make_model(norm=norm, lambda_identity=identity) for _ in range(2)]
    wanted, got = (
        run(implementation, model, n, steps=4)
        for implementation, model in zip(("reference", "fused"), models, strict=True)
    )
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(got[1], wanted[1], strict=True):
        for (name, gradient), (_, truth) in zip(ours, theirs, strict=True):
            error = (gradient - truth).abs().max() / truth.abs().max()
            assert error < 1e-8, name
    for name, net in models[0].networks.items():
        buffers = dict(net.named_buffers())
        assert len(buffers) == (0 if norm == "none" else 3 * len(net.norm_keys))
        for key, value in models[1].networks[name].named_buffers():
            torch.testing.assert_close(value, buffers[key], rtol=1e-9, atol=1e-12, msg=key)


def test_statistics_see_the_passes_of_a_step_in_jz_order():
    """G_A: A, rec_B, idt_A; G_B: rec_A, B, idt_B; a discriminator: fake, then real and pooled."""
    model, seen = make_model(norm="batch"), []
    for name, net in model.networks.items():

        def watch(x, weights, name=name, compute=net.compute):
            seen.append((name, x.detach()))
            return compute(x, weights)

        net.compute = watch
    A, B = images(2, 0, 0), images(2, 0, 1)
    STEPS["fused"](model, A, B, torch.arange(2))
    order = {name: [x for owner, x in seen if owner == name] for name in model.networks}
    assert [len(order[name]) for name in ("G_A", "G_B", "D_A", "D_B")] == [3, 3, 3, 3]
    for name, at, image in (("G_A", 0, A), ("G_A", 2, B), ("G_B", 1, B), ("G_B", 2, A)):
        assert torch.equal(order[name][at], image), (name, at)
    assert torch.equal(order["D_A"][1], B) and torch.equal(order["D_B"][1], A)
    assert all(len(x) == 2 for _, x in seen)


def test_losses_follow_the_formulas():
    """Each of the eight losses, recomputed from the networks by its formula."""
    model = make_model(lambda_A=9.0, lambda_B=11.0, lambda_identity=0.25)
    G_A, G_B, D_A, D_B = (model.networks[name] for name in ("G_A", "G_B", "D_A", "D_B"))
    A, B = images(2, 0, 0), images(2, 0, 1)
    with torch.no_grad():
        fake_B, fake_A = G_A(A), G_B(B)
        wanted = {
            "D_A": 0.5 * ((D_A(B) - 1).pow(2).mean() + D_A(fake_B).pow(2).mean()),
            "G_A": (D_A(fake_B) - 1).pow(2).mean(),
            "cycle_A": 9.0 * (G_B(fake_B) - A).abs().mean(),
            "idt_A": 0.25 * 11.0 * (G_A(B) - B).abs().mean(),
            "D_B": 0.5 * ((D_B(A) - 1).pow(2).mean() + D_B(fake_A).pow(2).mean()),
            "G_B": (D_B(fake_A) - 1).pow(2).mean(),
            "cycle_B": 11.0 * (G_A(fake_A) - B).abs().mean(),
            "idt_B": 0.25 * 9.0 * (G_B(A) - A).abs().mean(),
        }
    got = dict(zip(NAMES, STEPS["fused"](model, A, B, torch.arange(2)), strict=True))
    assert list(got) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-10, atol=0, msg=name)


def test_step_with_domains_of_different_size():
    """Sets that cannot be one batch are run one by one, with the same result."""
    shapes = (3, 32, 32), (3, 40, 24)
    rows = []
    for implementation in ("reference", "fused"):
        settings = Settings(dtype=torch.float64, pool_size=2)
        model = CycleGAN(make_networks(torch.float64), settings, *shapes)
        A, B = images(1, 0, 0), images(1, 0, 1).reshape(1, 3, 32, 32)
        B = torch.nn.functional.interpolate(B, shapes[1][1:])
        rows.append([STEPS[implementation](model, A, B, torch.arange(1)) for _ in range(3)])
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-9, atol=1e-12)


class _Backwards(TorchDispatchMode):
    """Records of each backward of a convolution its weight's shape, its images, and what it gives.

    What it gives are gradients of input, weight and bias, as a mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.seen.append((tuple(args[2].shape), len(args[0]), tuple(args[-1])))
        return function(*args, **(kwargs or {}))


class _LayoutCopies(TorchDispatchMode):
    """Records the shape of each image or activation that is copied only to lie otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out, aten = function(*args, **(kwargs or {})), torch.ops.aten
        if function.overloadpacket in (aten.clone, aten._to_copy, aten.copy_):
            source = args[1] if function.overloadpacket is aten.copy_ else args[0]
            if _reordered(source, out):
                self.seen.append(tuple(source.shape))
        return out


def _reordered(source: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether the same values lie in another order; of tensors as large as a trunk's."""
    if source.ndim != 4 or min(source.shape[2:]) < SIZE // 4 or source.dtype != out.dtype:
        return False
    formats = torch.contiguous_format, torch.channels_last
    before, after = ([x.is_contiguous(memory_format=f) for f in formats] for x in (source, out))
    return any(before) and not any(b and a for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)], ids=["cpu", "cuda"]
)
def test_nothing_changes_its_layout_in_a_step(device):
    # on a CPU without the pool, whose reference is not made for speed
    settings = {"dtype": torch.bfloat16, "pool_size": 0 if device == "cpu" else 3}
    shape = (3, SIZE, SIZE)
    networks = {name: net.to(device) for name, net in make_networks(torch.float32).items()}
    model = CycleGAN(networks, Settings(**settings), shape, shape)
    batch = [images(2, 0, domain, torch.bfloat16).to(device) for domain in (0, 1)]
    number = torch.arange(2, device=device)
    STEPS["fused"](model, *batch, number)
    with _LayoutCopies() as copies:
        STEPS["fused"](model, *batch, number)
    assert not copies.seen


def test_step_computes_each_discriminator_once_and_no_gradient_in_vain():
    """By convolution: data gradients of all images, of fakes alone in front; weights' of 2 in 3."""
    n, model = 2, make_model()
    calls = dict.fromkeys(model.networks, 0)
    for name, net in model.networks.items():

        def watch(x, weights, *weighed, name=name, compute=net.compute):
            calls[name] += 1
            return compute(x, weights, *weighed)

        net.compute = watch
    with _Backwards() as backwards:
        STEPS["fused"](model, images(n, 0, 0), images(n, 0, 1), torch.arange(n))
    assert calls == {"G_A": 2, "G_B": 2, "D_A": 1, "D_B": 1}
    weights = [tuple(p.shape) for p in model.weights["D_A"].masters if p.ndim == 4]
    biased = {weights[0], weights[-1]}
    expected = [(w, n if w is weights[0] else 3 * n, (True, False, False)) for w in weights]
    expected += [(w, 2 * n, (False, True, w in biased)) for w in weights]
    of_judges = [call for call in backwards.seen if call[0] in weights]
    assert sorted(of_judges) == sorted(2 * expected)
    # two generators, in a pass of 2 n images and one of n
    of_generators = [call for call in backwards.seen if call[0] not in weights]
    layers = sum(p.ndim == 4 for p in model.weights["G_A"].masters)
    assert len(of_generators) == 4 * layers
    assert all(gives[1] for _, _, gives in of_generators)


def test_discriminators_learn_nothing_from_the_generators_loss():
    """Their gradients are those of their own loss to the bit, however large the other one is."""
    model, n = make_model(), 2
    weights = {name: of_network.copies for name, of_network in model.weights.items()}
    real, pooled = ([images(n, step, d) for d in (0, 1)] for step in (0, 1))
    fakes = [images(n, 2, d).requires_grad_() for d in (0, 1)]

    def gradients(*factors):
        losses = model.discriminator_losses(model, weights, real, pooled, fakes)
        loss = sum(f * losses[k] for f, k in zip(factors, ("G_A", "D_A"), strict=True))
        return torch.autograd.grad(loss, [*weights["D_A"], fakes[1]])

    *own, of_fakes = gradients(0.0, 1.0)
    *both, of_fakes_by_both = gradients(1e6, 1.0)
    assert all(map(torch.equal, own, both)) and not of_fakes.any()
    D = model.networks["D_A"]
    judge = partial(D.compute, weights=[w.detach() for w in weights["D_A"]])
    (expected,) = torch.autograd.grad(1e6 * gan_loss(judge(fakes[1]), True), fakes[1])
    torch.testing.assert_close(of_fakes_by_both, expected, rtol=1e-12, atol=0)
    plain = [gan_loss(D.compute(x[1], weights["D_A"]), t) for x, t in ((real, 1), (pooled, 0))]
    expected = torch.autograd.grad(0.5 * sum(plain), weights["D_A"])
    for mine, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)


def test_bf16_copies_follow_the_masters():
    """In bf16 the masters stay fp32, move, and the copies are their casts after each step."""
    shape = (3, SIZE, SIZE)
    model = CycleGAN(make_networks(torch.float32), Settings(dtype=torch.bfloat16), shape, shape)
    before = [p.detach().clone() for p in model.weights["G_A"].masters]
    real = (images(1, 0, domain).bfloat16() for domain in (0, 1))
    row = STEPS["fused"](model, *real, torch.arange(1))
    assert row.dtype == torch.float32 and torch.isfinite(row).all()
    for weights in model.weights.values():
        for master, copy in zip(weights.masters, weights.copies, strict=True):
            assert master.dtype == torch.float32 and copy.dtype == torch.bfloat16
            assert torch.equal(copy, master.bfloat16())
    after = model.weights["G_A"].masters
    assert all(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_the_generator_by_finite_differences(memory_format):
    """The derivative along a random direction, with a cotangent in either layout, at batch 1.

    F.instance_norm fails this on a CPU for channels_last (torch 2.13).
    """
    net = make_networks(torch.float64)["G_A"]
    x = images(1, 0, 0)
    cotangent = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64).contiguous(
        memory_format=memory_format
    )
    masters = [p for _, p in net.live_parameters()]
    gradients = torch.autograd.grad(net(x), masters, cotangent)
    direction = [torch.randn_like(p) for p in masters]
    analytic = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step = 1e-6
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            shifted = [p + sign * step * d for p, d in zip(masters, direction, strict=True)]
            values.append((net.compute(x, shifted) * cotangent).sum())
    numeric = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-6)
