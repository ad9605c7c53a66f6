"""Our networks beside junyanz's own: recorded outputs, and live ones where there is a checkout."""

import importlib
import json
import os
import sys

import pytest
import torch
from torch import nn

import record_jz as jz
from fastcyclegan.models import Network, build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.weights import load_generator, load_network

RECORDED = json.loads(jz.DATA.read_text(encoding="utf-8"))
# fp32 outputs of order 1: what the order of additions makes of them, through up to 24 layers
ATOL = 1e-5


def ours(case: str, width: int = jz.WIDTH) -> Network:
    family, depth, norm, dropout, _ = jz.CASES[case]
    if family == "resnet":
        arch = {"class": "ResnetGenerator", "ngf": width, "n_blocks": depth, "dropout": dropout}
    elif family == "unet":
        arch = {"class": "UnetGenerator", "ngf": width, "num_downs": depth, "dropout": dropout}
    elif family == "patchgan":
        arch = {"class": "NLayerDiscriminator", "ndf": width, "n_layers": depth}
    else:
        arch = {"class": "PixelDiscriminator", "ndf": width}
    return build({**arch, "norm": norm})


def greatest_difference(found: dict, truth: dict) -> float:
    assert found.keys() == {"shape", "eval"} | (truth.keys() & {"train", "running"})
    assert found["shape"] == truth["shape"]
    return max(
        abs(x - y)
        for name in found.keys() - {"shape"}
        for x, y in zip(found[name], truth[name], strict=True)
    )


@pytest.mark.parametrize("case", jz.CASES)
def test_outputs_equal_the_recorded_ones(case):
    """Same weights, same image: eval mode, training mode, and what a batch norm has then seen."""
    net = ours(case)
    net.load_state_dict(jz.formula_weights(net))
    assert greatest_difference(jz.outputs(net, case), RECORDED["cases"][case]) < ATOL


@pytest.mark.parametrize("case", jz.CASES)
def test_counts_keys_and_shapes_equal_the_recorded_ones(case):
    with torch.device("meta"):
        net = ours(case, width=64)
    truth = RECORDED["cases"][case]
    assert sum(p.numel() for p in net.parameters()) == truth["parameters"]
    assert len(net.state_dict()) == truth["tensors"]
    assert jz.keys_digest(net.state_dict()) == truth["keys"]


@pytest.mark.parametrize("kind", RECORDED["init_std"])
def test_initialisation_has_the_recorded_spread(kind):
    """Per weight; a standard deviation of n draws is known to 1 / sqrt(2 n), of which 5 on top."""
    net = build({"class": "ResnetGenerator", "ngf": 32, "n_blocks": 6, "norm": "batch"})
    init_weights(net, 0.05, torch.Generator().manual_seed(0), kind)
    weights = [p for p in net.parameters() if p.ndim == 4]
    for weight, std in zip(weights, RECORDED["init_std"][kind], strict=True):
        assert weight.std().item() == pytest.approx(std, rel=5 * (2 / weight.numel()) ** 0.5)


@pytest.fixture(scope="module")
def networks():
    """JZ's own module ``models.networks``, from the checkout; gone from sys.modules afterwards."""
    root = os.environ.get(jz.VARIABLE)
    if not root:
        pytest.skip(f"{jz.VARIABLE} names no checkout of pytorch-CycleGAN-and-pix2pix")
    before = set(sys.modules)
    sys.path.insert(0, os.path.abspath(root))
    yield importlib.import_module("models.networks")
    sys.path.remove(os.path.abspath(root))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("models", "util", "options"):
            del sys.modules[name]


def seen_once(networks, net: nn.Module, case: str) -> nn.Module:
    """``net`` initialised by JZ's code, with running statistics of one pass."""
    torch.manual_seed(1)
    networks.init_weights(net)
    with torch.no_grad():
        net.train()(jz.formula_images(case))
    return net.eval()


@pytest.mark.parametrize("case", [case for case in jz.CASES if "none" not in case])
def test_pth_of_real_width_gives_the_output_of_jz_code(networks, case, tmp_path):
    """Written by torch.save, found from its keys, the same image through both."""
    width = 64 if "unet" not in case else 32
    net = seen_once(networks, jz.theirs(networks, case, width), case)
    path = tmp_path / "latest_net_G_A.pth"
    torch.save(net.state_dict(), path)
    is_judge = jz.CASES[case][0] in ("patchgan", "pixel")
    loaded = load_network(path)[0].eval() if is_judge else load_generator(path)
    x = jz.formula_images(case)
    with torch.no_grad():
        found, wanted = loaded(x), net(x)
    assert (found - wanted).abs().max() < ATOL


def test_live_outputs_equal_the_recorded_ones(networks):
    """The recording is of this code: a stale one would prove nothing."""
    for case in ("resnet_6blocks batch", "unet_128 instance", "n_layers 3 batch", "pixel none"):
        live = jz.record(networks, case)
        assert live["keys"] == RECORDED["cases"][case]["keys"]
        found = {k: v for k, v in live.items() if k in ("shape", "eval", "train", "running")}
        assert greatest_difference(found, RECORDED["cases"][case]) < ATOL
