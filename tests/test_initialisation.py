"""How weights begin: spread, orthogonality, batch norms, and the seed."""

import pytest
import torch

from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator
from fastcyclegan.models.initialisation import INITS, init_weights


def test_initialisation_is_normal_and_a_function_of_the_seed():
    nets = [ResnetGenerator(n_blocks=2) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        init_weights(net, 0.02, torch.Generator().manual_seed(seed))
    a, b, other = (net.state_dict() for net in nets)
    weight = a["model.10.conv_block.1.weight"]
    assert abs(weight.std().item() - 0.02) < 2e-4 and abs(weight.mean().item()) < 2e-4
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["model.1.weight"], other["model.1.weight"])
    assert all(not value.any() for key, value in a.items() if key.endswith("bias"))


def drawn(kind: str, gain: float = 0.02, seed: int = 0, **options) -> dict[str, torch.Tensor]:
    net = ResnetGenerator(**({"ngf": 32, "n_blocks": 1, "norm": "batch"} | options))
    init_weights(net, gain, torch.Generator().manual_seed(seed), kind)
    return net.state_dict()


@pytest.mark.parametrize(
    ("kind", "spread"),
    [
        ("normal", {"model.4": 0.3, "model.11": 0.3}),
        # fan_in and fan_out swap places in a transposed convolution's weight (in, out, 3, 3)
        ("xavier", {"model.4": 0.3 * (2 / (96 * 9)) ** 0.5, "model.11": 0.3 * (2 / 1728) ** 0.5}),
        ("kaiming", {"model.4": (2 / (32 * 9)) ** 0.5, "model.11": (2 / (64 * 9)) ** 0.5}),
    ],
)
def test_spread_of_the_weights(kind, spread):
    """Standard deviations by the formulas; 18,432 and 73,728 draws know theirs to 1 in 100."""
    state = drawn(kind, gain=0.3)
    for key, wanted in spread.items():
        assert state[f"{key}.weight"].std().item() == pytest.approx(wanted, rel=0.02)


def test_orthogonal_weights_have_orthonormal_rows_times_the_gain():
    weight = drawn("orthogonal", gain=0.3)["model.10.conv_block.1.weight"]
    rows = weight.reshape(len(weight), -1).double()
    identity = 0.09 * torch.eye(len(rows), dtype=torch.float64)
    torch.testing.assert_close(rows @ rows.T, identity, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", INITS)
def test_batch_norms_begin_near_one_and_statistics_at_their_start(kind):
    state = drawn(kind)
    scale = torch.cat([v for k, v in state.items() if v.ndim == 1 and k.endswith("weight")])
    assert scale.mean().item() == pytest.approx(1.0, abs=4e-3)
    assert scale.std().item() == pytest.approx(0.02, rel=0.2)
    for key, value in state.items():
        if key.endswith("bias") or key.endswith("running_mean"):
            assert not value.any(), key
        if key.endswith("running_var"):
            assert (value == 1).all(), key


@pytest.mark.parametrize("kind", INITS)
def test_every_way_is_a_function_of_the_seed_and_keeps_channels_last(kind):
    a, b, other = drawn(kind), drawn(kind), drawn(kind, seed=1)
    for key, value in a.items():
        assert torch.equal(value, b[key])
        if value.ndim == 4:
            assert value.is_contiguous(memory_format=torch.channels_last)
            assert not torch.equal(value, other[key])


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="init_type='he'"):
        init_weights(NLayerDiscriminator(ndf=2), 0.02, torch.Generator(), "he")
