"""Exported files: what other programs, and we, read from them again; and what is refused."""

import importlib
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

import record_jz as jz
from fastcyclegan import command, export
from fastcyclegan.config import TrainConfig
from fastcyclegan.models import build
from fastcyclegan.models.initialisation import init_weights
from fastcyclegan.models.weights import load_network, save_network
from fastcyclegan.steps.assembly import make_networks
from fastcyclegan.steps.initial import CYCLEGAN, adopt

RESNET = {"class": "ResnetGenerator", "ngf": 4, "n_blocks": 6}
UNET = {"class": "UnetGenerator", "ngf": 2, "num_downs": 7}
DCGAN = {"class": "DCGANGenerator", "ngf": 4, "nz": 7}


def trained(arch, seed=0):
    """A network with weights, and running statistics, that are not those of a fresh one."""
    net = build(arch)
    init_weights(net, 0.1, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    for value in net.buffers():
        value.copy_(torch.rand_like(value.float()) + 0.5)
    return net.eval()


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def call(tmp_path, capsys):
    """Save ``arch`` as G.safetensors if given, and export."""

    def run(form, arch=None, output="out", weights="G.safetensors", words=()):
        if arch:
            pixel_range = arch.get("pixel_range", "tanh")
            save_network(tmp_path / weights, trained(arch), step=7, pixel_range=pixel_range)
        places = ["--weights", str(tmp_path / weights), "--output", str(tmp_path / output)]
        code = command.run(export.main, [*places, "--format", form, *words])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out.splitlines(), err=err.splitlines())

    return run


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("arch", [RESNET, UNET], ids=["resnet", "unet"])
def test_round_trip_by_way_of_jz_loses_nothing(call, tmp_path, arch, norm):
    result = call("jz", {**arch, "norm": norm})
    assert result.code == 0 and files(tmp_path / "out") == ["latest_net_G.pth"]
    result = call("safetensors", weights="out/latest_net_G.pth", output="back.safetensors")
    untold = "padding reflect" if arch is RESNET else "dropout False"
    assert result.out[0].endswith(f"and assumed is pixel_range tanh, {untold}")
    net, metadata = load_network(tmp_path / "back.safetensors")
    assert same(net, trained({**arch, "norm": norm})) and metadata["step"] == 0
    result = call("safetensors", output="again.safetensors")
    assert result.code == 0 and len(result.out) == 1
    again, metadata = load_network(tmp_path / "again.safetensors")
    assert same(again, net) and metadata == load_network(tmp_path / "G.safetensors")[1]
    assert metadata["step"] == 7


def test_a_run_folder_gives_all_its_networks(call, tmp_path):
    (tmp_path / "run/weights").mkdir(parents=True)
    judge = {"class": "NLayerDiscriminator", "ndf": 4}
    nets = {"G_A": trained(RESNET, 1), "G_B": trained(RESNET, 2), "D_A": trained(judge, 3)}
    for name, net in nets.items():
        save_network(tmp_path / f"run/weights/{name}.safetensors", net, step=5)
    result = call("jz", weights="run")
    assert files(tmp_path / "out") == sorted(f"latest_net_{name}.pth" for name in nets)
    for name, net in nets.items():
        assert same(load_network(tmp_path / f"out/latest_net_{name}.pth")[0], net)
    options = "--netG resnet_6blocks --ngf 4 --norm instance --no_dropout"
    assert result.out[-1] == f"its options: {options}"
    assert "3 networks need a folder" in call("jz", weights="run", output="o.pth").err[0]


def test_dcgan_for_pytorch_examples(call, tmp_path):
    assert call("examples", DCGAN).code == 0
    assert files(tmp_path / "out") == ["netG.pth"]
    state = torch.load(tmp_path / "out/netG.pth", weights_only=True)
    assert state.keys() == build(DCGAN).state_dict().keys()
    assert same(load_network(tmp_path / "out/netG.pth")[0], trained(DCGAN))


@pytest.mark.parametrize(
    ("form", "arch", "reason"),
    [
        ("jz", RESNET | {"n_blocks": 2}, "6 or 9 blocks"),
        ("jz", RESNET | {"padding": "replicate"}, "padding reflect alone"),
        ("jz", RESNET | {"upsample": "resize"}, "upsample transpose alone"),
        ("jz", RESNET | {"residual_relu": True}, "no ReLU behind the sum"),
        ("jz", RESNET | {"pixel_range": "tanh255"}, "in [-1, 1] always"),
        ("jz", UNET | {"num_downs": 5}, "unet_128 has 7 levels"),
        ("jz", DCGAN, "none of this kind"),
        ("jz", {"class": "JohnsonGenerator", "ngf": 4}, "none of this kind"),
        ("examples", RESNET, "a DCGAN alone"),
        ("examples", DCGAN | {"size": 32}, "size 64 alone"),
        ("examples", DCGAN | {"pixel_range": "linear255"}, "in [-1, 1] always"),
        ("examples", DCGAN | {"pixel_range": "tanh255"}, "in [-1, 1] always"),
    ],
)
def test_what_another_program_has_not_is_refused(call, tmp_path, form, arch, reason):
    result = call(form, arch)
    assert (result.code, result.out, len(result.err)) == (2, [], 1)
    assert reason in result.err[0] and not (tmp_path / "out").exists()


def test_a_discriminator_keeps_the_range_that_it_judged(call, tmp_path):
    """Its description says none; without it a training that starts from the file is refused."""
    judges = {"class": "NLayerDiscriminator", "ndf": 4}, {"class": "DCGANDiscriminator", "ndf": 4}
    nets = {"G_A": RESNET, "G_B": RESNET, "D_A": judges[0], "D_B": judges[0], "D": judges[1]}
    (tmp_path / "run").mkdir()
    for name, arch in nets.items():
        arch = arch | ({"pixel_range": "tanh255"} if name in ("G_A", "G_B") else {})
        path = tmp_path / f"run/{name}.safetensors"
        save_network(path, trained(arch), step=5, pixel_range="tanh255")
    assert call("safetensors", weights="run", output="F").code == 0
    assert all(load_network(tmp_path / f"F/{n}.safetensors")[1]["pixel_range"] == "tanh255"
               for n in nets)  # fmt: skip
    config, _ = adopt(TrainConfig(init_from=str(tmp_path / "F")), frozenset(), CYCLEGAN)
    assert config.pixel_range == "tanh255" and make_networks(config, torch.device("cpu"))
    for form, name in (("jz", "D_A"), ("examples", "D")):
        result = call(form, weights=f"run/{name}.safetensors", output="no")
        assert result.code == 2 and "its pixel range is tanh255, and" in result.err[0]
        assert not (tmp_path / "no").exists()


def test_places_and_options_are_refused_by_name(call, tmp_path, monkeypatch):
    assert call("jz", RESNET).code == 0
    before = (tmp_path / "out/latest_net_G.pth").read_bytes()
    assert "--overwrite replaces it" in call("jz").err[0]
    assert call("jz", words=["--overwrite"]).code == 0
    assert "would replace --weights" in call("safetensors", output="G.safetensors").err[0]
    assert "--format" in call("pickle").err[0] and call("pickle").code == 2
    assert "--direction" in call("jz", words=["--direction", "BtoA"]).err[0]
    assert "does not exist" in call("jz", weights="no.safetensors").err[0]
    (tmp_path / "file").write_text("x")
    assert "cannot be made" in call("jz", output="file/sub").err[0]

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = call("jz", words=["--overwrite"])
    assert result.code == 2 and "No space left" in result.err[0]
    assert (tmp_path / "out/latest_net_G.pth").read_bytes() == before
    assert files(tmp_path / "out") == ["latest_net_G.pth"]


def test_a_missing_extra_is_named(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    [line] = call("onnx", RESNET).err
    assert "needs onnxruntime" in line and "pip install -e '.[export]'" in line


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [made] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return session, made


def test_onnx_is_the_network_at_any_size(call, tmp_path):
    arch = {"class": "ResnetGenerator", "ngf": 4, "n_blocks": 1, "pixel_range": "tanh255"}
    result = call("onnx", arch, output="new/G.onnx")
    assert result.code == 0 and "three sizes in onnxruntime" in result.out[0]
    assert files(tmp_path / "new") == ["G.onnx"]
    x = torch.rand(3, 3, 52, 20) * 255
    session, made = run_onnx(tmp_path / "new/G.onnx", x)
    assert session.get_inputs()[0].name == "image"
    with torch.no_grad():
        assert np.abs(made - trained(arch)(x).numpy()).max() < 1e-4 * 127.5
    told = session.get_modelmeta().custom_metadata_map
    assert told["pixel_range"] == "tanh255"
    assert json.loads(told["arch"])["class"] == "ResnetGenerator"


def test_an_onnx_file_that_differs_is_not_written(call, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_save_onnx", lambda path, net: path.write_bytes(b"x"))
    for difference in (2e-4, float("nan")):
        monkeypatch.setattr(export, "_difference", lambda path, net, x=difference: x)
        result = call("onnx", RESNET)
        assert result.code == 2 and "nothing was written" in result.err[0]
    assert files(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    [
        {"class": "ResnetGenerator"},
        {"class": "ResnetGenerator", "n_blocks": 6, "norm": "batch", "upsample": "resize"},
        {"class": "UnetGenerator", "ngf": 16},
        {"class": "JohnsonGenerator"},
        DCGAN,
    ],
    ids=lambda arch: "-".join(map(str, arch.values())),
)
def test_onnx_of_real_networks(call, arch):
    result = call("onnx", arch)
    assert result.code == 0 and float(result.out[0].split(" by ")[1].split()[0]) <= 1e-4


JZ_TEST_OPTIONS = {
    "isTrain": False,
    "gpu_ids": [],
    "name": "ours",
    "preprocess": "none",
    "model_suffix": "",
    "epoch": "latest",
    "load_iter": 0,
    "verbose": False,
    "input_nc": 3,
    "output_nc": 3,
    "init_type": "normal",
    "init_gain": 0.02,
}


@pytest.fixture
def jz_test_model(tmp_path, monkeypatch):
    """JZ's own TestModel, from the checkout, set up as its test.py does with our printed options"""
    root = os.environ.get(jz.VARIABLE)
    if not root:
        pytest.skip(f"{jz.VARIABLE} names no checkout of pytorch-CycleGAN-and-pix2pix")
    monkeypatch.syspath_prepend(os.path.abspath(root))
    before = set(sys.modules)
    test_model = importlib.import_module("models.test_model")

    def make(line):
        words = line.removeprefix("its options: ").split()
        flags = dict(zip(words[:6:2], words[1:6:2], strict=True))
        own = {"netG": flags["--netG"], "ngf": int(flags["--ngf"]), "norm": flags["--norm"]}
        own |= {"no_dropout": "--no_dropout" in words, "checkpoints_dir": str(tmp_path)}
        options = SimpleNamespace(**JZ_TEST_OPTIONS, **own)
        model = test_model.TestModel(options)
        model.setup(options)
        if "--eval" in words:
            model.eval()
        return model

    yield make
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("models", "util", "options"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "arch",
    [RESNET, RESNET | {"norm": "batch", "dropout": True}, UNET | {"norm": "batch"}],
    ids=["instance", "batch", "unet"],
)
def test_jz_test_code_makes_the_same_image_of_it(call, jz_test_model, arch):
    """It finds, loads and runs what was exported."""
    model = jz_test_model(call("jz", arch, output="ours").out[-1])
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    model.set_input({"A": x, "A_paths": ["x.png"]})
    model.test()
    with torch.no_grad():
        assert (model.fake - trained(arch)(x)).abs().max() < 1e-5
