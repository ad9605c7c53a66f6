"""The DCGAN step: both implementations, pytorch/examples' recorded numbers, and its own code."""

import json

import pytest
import torch

from bench.examples import VARIABLE, ExamplesDCGAN, checkout
from fastcyclegan.models import DCGANDiscriminator, DCGANGenerator, build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.steps import dcgan
from fastcyclegan.steps.capture import WARM_UP, CapturedStep, CudaGraphs
from fastcyclegan.steps.dcgan import DCGAN, NAMES, STEPS, Settings
from fastcyclegan.steps.state import train_state
from record_dcgan import BATCH, DATA, NDF, NGF, NZ, formula_batch, formula_weights

RECORDED = json.loads(DATA.read_text(encoding="utf-8"))


def make_model(dtype=torch.float64, device="cpu", **settings) -> DCGAN:
    """A small one of 16 pixels, with weights wide enough that activations are not tiny."""
    generator = torch.Generator().manual_seed(3)
    networks = {"G": DCGANGenerator(7, 4, 3, 16), "D": DCGANDiscriminator(3, 5, 16)}
    for net in networks.values():
        init_weights(net, 0.2, generator)
    settings = {"seed": 5, "dtype": dtype, **settings}
    if settings.get("ema"):
        networks["G_ema"] = build(networks["G"].arch).requires_grad_(False)
        networks["G_ema"].load_state_dict(networks["G"].state_dict())
    for net in networks.values():
        net.to(device, torch.promote_types(dtype, torch.float32))
    return DCGAN(networks, Settings(**settings))


def images(step: int, dtype=torch.float64, n: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.rand((n, 3, 16, 16), generator=generator, dtype=torch.float64) * 2 - 1
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def run(implementation: str, model: DCGAN, steps: int, dtype=torch.float64) -> torch.Tensor:
    step = STEPS[implementation]
    rows = [step(model, images(i, dtype), torch.arange(3) + 3 * i) for i in range(steps)]
    return torch.stack(rows)


def with_formula(dtype: torch.dtype) -> DCGAN:
    """Ours with the weights that the numbers of pytorch/examples were recorded with."""
    networks = {"G": DCGANGenerator(NZ, NGF), "D": DCGANDiscriminator(ndf=NDF)}
    for name, net in networks.items():
        net.load_state_dict(formula_weights(name, net))
        net.to(dtype)
    return DCGAN(networks, Settings(dtype=dtype))


def test_both_implementations_are_the_same_mathematics():
    """Losses, probabilities, all weights and all statistics, over some steps in fp64."""
    models = {name: make_model() for name in STEPS}
    rows = {name: run(name, model, 4) for name, model in models.items()}
    torch.testing.assert_close(rows["fused"], rows["reference"], rtol=1e-9, atol=1e-12)
    fused, reference = (
        {
            f"{n}.{k}": v
            for n, net in models[name].networks.items()
            for k, v in net.state_dict().items()
        }
        for name in ("fused", "reference")
    )
    torch.testing.assert_close(fused, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("implementation", STEPS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_steps_have_the_numbers_of_pytorch_examples(monkeypatch, implementation, precision):
    """Eight steps in fp64, two in fp32, of what its loop prints."""
    dtype = getattr(torch, precision)
    model = with_formula(dtype)
    for step, row in enumerate(RECORDED["steps"][precision]):
        real, noise = formula_batch(step, dtype)
        monkeypatch.setattr(model, "noise", lambda number, noise=noise: noise)
        got = STEPS[implementation](model, real, torch.arange(BATCH) + BATCH * step)
        wanted = torch.tensor([row[name] for name in NAMES], dtype=got.dtype)
        tolerance = 1e-9 if precision == "float64" else 1e-5
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_forward_passes_have_the_numbers_of_pytorch_examples():
    networks, recorded = with_formula(torch.float64).networks, RECORDED["forward"]
    real, noise = formula_batch(0, torch.float64)
    fake = networks["G"](noise).detach()
    pixels = torch.tensor(recorded["G_pixels"], dtype=torch.float64)
    torch.testing.assert_close(fake[:, :, 10, 20].flatten(), pixels, rtol=0, atol=1e-12)
    assert fake.abs().mean().item() == pytest.approx(recorded["G_mean_size"], rel=1e-12)
    probability = torch.sigmoid(networks["D"](real)).flatten()
    wanted = torch.tensor(recorded["D"], dtype=torch.float64)
    torch.testing.assert_close(probability, wanted, rtol=1e-12, atol=0)


def test_beside_their_own_code():
    """Full width, fp32: the outputs to 1e-5, and two steps of both."""
    if checkout() is None:
        pytest.skip(f"{VARIABLE} names no checkout of pytorch/examples")
    torch.manual_seed(0)
    peer = ExamplesDCGAN(torch.device("cpu"))
    networks = {"G": DCGANGenerator(), "D": DCGANDiscriminator()}
    for name, theirs in (("G", peer.netG), ("D", peer.netD)):
        networks[name].load_state_dict(theirs.state_dict())
    model = DCGAN(networks, Settings())
    real = torch.rand(8, 3, 64, 64) * 2 - 1
    noise = model.noise(torch.arange(8))
    for net in (peer.netG, peer.netD, *networks.values()):
        net.eval()
    with torch.no_grad():
        torch.testing.assert_close(networks["G"](noise), peer.netG(noise), rtol=0, atol=1e-5)
        ours = torch.sigmoid(networks["D"](real)).flatten()
        torch.testing.assert_close(ours, peer.netD(real), rtol=0, atol=1e-5)
    for net in (peer.netG, peer.netD, *networks.values()):
        net.train()
    for step in range(2):
        number = torch.arange(8) + 8 * step
        row = dict(zip(NAMES, STEPS["fused"](model, real, number).tolist(), strict=True))
        assert row == pytest.approx(peer.step(real, model.noise(number)), rel=1e-3, abs=1e-4)


def test_real_and_fake_are_batches_of_their_own():
    """Three passes of D and one of G per step, as their counters say; no statistics are shared."""
    model = make_model()
    run("fused", model, 2)
    buffers = {n: dict(net.named_buffers()) for n, net in model.networks.items()}
    counts = {
        n: {int(v) for k, v in found.items() if k.endswith("tracked")}
        for n, found in buffers.items()
    }
    assert counts == {"G": {2}, "D": {6}}


def test_step_costs_no_discarded_gradient():
    """In the step of G no gradient of a weight of D is computed, and images need none at all."""
    model, touched = make_model(), []
    for weight in model.weights["D"].copies:
        weight.register_hook(lambda gradient: touched.append(gradient.shape))
    fake = dcgan.generate(model, model.weights["G"].copies, model.noise(torch.arange(3)))
    judged = model.generator_loss(model, model.weights["D"].detached(), fake)
    torch.autograd.grad(judged["G"], model.weights["G"].copies)
    assert touched == []
    dcgan.discriminator_loss(model, model.weights["D"].copies, images(0), fake.detach())[
        "D"
    ].backward()
    assert len(touched) == len(model.weights["D"].copies)


def test_noise_is_a_function_of_the_image_number():
    model = make_model(torch.float32)
    whole = model.noise(torch.arange(12))
    assert whole.shape == (12, 7, 1, 1)
    assert torch.equal(model.noise(torch.arange(5, 9)), whole[5:9])
    assert not torch.equal(make_model(torch.float32, seed=6).noise(torch.arange(12)), whole)


def test_the_average_follows_the_generator():
    """9 / (10 + t) of the way while that is more than 1 - ema; statistics are taken over."""
    model = make_model(ema=0.4)
    expected = {k: v.clone() for k, v in model.networks["G_ema"].state_dict().items()}
    for step in range(8):
        run_step = STEPS["fused"]
        run_step(model, images(step), torch.arange(3) + 3 * step)
        share = max(9 / (10 + step), 1 - 0.4)
        for key, value in model.networks["G"].state_dict().items():
            is_buffer = key.rpartition(".")[2].startswith(("running", "num"))
            mixed = value if is_buffer else expected[key] + share * (value - expected[key])
            expected[key] = mixed.clone()
    assert 9 / 17 < 0.6 < 9 / 10
    torch.testing.assert_close(dict(model.networks["G_ema"].state_dict()), expected)


def test_bf16_copies_follow_the_masters_and_stay_near_fp32():
    rows = {}
    for dtype in (torch.float64, torch.bfloat16):
        model = make_model(dtype)
        rows[dtype] = run("fused", model, 3, dtype).double()
        for weights in model.weights.values():
            for master, copy in zip(weights.masters, weights.copies, strict=True):
                assert torch.equal(copy, master.to(copy.dtype))
    assert {c.dtype for w in model.weights.values() for c in w.copies} == {
        torch.bfloat16,
        torch.float32,
    }
    # eight bits of precision, through a few layers and steps
    torch.testing.assert_close(rows[torch.bfloat16], rows[torch.float64], rtol=0.05, atol=0.05)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_equals_uncaptured_bit_for_bit(dtype, deterministic):
    """With other noise in each replay, and one step that is not finite."""
    rows, states, said, spoilt = [], [], [], WARM_UP + 5
    for graphs in (None, CudaGraphs(torch.device("cuda", 0))):
        model, step = make_model(dtype, "cuda", ema=0.9), STEPS["fused"]
        if graphs:
            step = CapturedStep(step, said.append, graphs)
        losses = []
        for number in range(20):
            model.set_lr(2e-4 if number < 10 else 1e-4)
            real = images(number, dtype)
            real[0, 0, 0, 0] = float("nan") if number == spoilt else 0.0
            losses.append(step(model, real.cuda(), torch.arange(3).cuda() + 3 * number).clone())
        rows.append(torch.stack(losses))
        found = {
            f"{n}/{k}": x for n, net in model.networks.items() for k, x in net.state_dict().items()
        }
        states.append(found | train_state(model))
        assert model.gate.read().numbers == (3 * spoilt,)
    assert "captured in one CUDA graph" in said[0]
    assert rows[0].isnan().any(1).nonzero().tolist() == [[spoilt]]
    assert torch.equal(rows[1].nan_to_num(7), rows[0].nan_to_num(7))
    assert all(torch.equal(states[1][name], states[0][name]) for name in states[0])
    assert len({tuple(row) for row in rows[1].tolist()}) == len(rows[1])
