"""Weights files: what is written, what comes back, and one line for each thing that is wrong."""

import json
import os

import pytest
import safetensors
import safetensors.torch
import torch

from fastcyclegan.errors import UserError
from fastcyclegan.models import (
    NLayerDiscriminator,
    PixelDiscriminator,
    ResnetGenerator,
    UnetGenerator,
)
from fastcyclegan.models.weights import load_generator, load_network, save_network


def generator(seed=0, **arguments):
    torch.manual_seed(seed)
    return ResnetGenerator(**({"ngf": 4, "n_blocks": 2} | arguments))


@pytest.fixture
def saved(tmp_path):
    net = generator()
    save_network(tmp_path / "G.safetensors", net, step=7)
    return net, tmp_path / "G.safetensors"


def resave(path, change_tensors=None, **change_header):
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata() | change_header
    tensors = safetensors.torch.load_file(path)
    if change_tensors:
        change_tensors(tensors)
    kept = {key: value for key, value in header.items() if value is not None}
    safetensors.torch.save_file(tensors, path, kept)


def refusal(path, load=load_network, **arguments):
    with pytest.raises(UserError) as error:
        load(path, **arguments)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_the_file_is_fp32_contiguous_with_the_header_that_is_promised(tmp_path):
    path = tmp_path / "G.safetensors"
    net = generator().to(torch.bfloat16, memory_format=torch.channels_last)
    save_network(path, net, step=7)
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert header["format"] == "fastcyclegan/1"
    assert header["pixel_range"] == "tanh" and header["step"] == "7"
    assert json.loads(header["arch"]) == net.arch
    assert tensors.keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        assert tensors[key].dtype == torch.float32
        assert torch.equal(tensors[key], value.float())
    assert os.listdir(tmp_path) == ["G.safetensors"]


@pytest.mark.parametrize(
    "net",
    [
        ResnetGenerator(3, 1, ngf=4, n_blocks=1, padding="zero"),
        NLayerDiscriminator(1, ndf=4, n_layers=2),
        ResnetGenerator(ngf=4, n_blocks=1, norm="batch", dropout=True, upsample="resize").eval(),
        UnetGenerator(ngf=2, num_downs=5, norm="batch").eval(),
        PixelDiscriminator(4, norm="none"),
    ],
)
def test_a_network_comes_back_with_the_same_weights_and_output(net, tmp_path):
    save_network(tmp_path / "n.safetensors", net, step=12)
    back, metadata = load_network(tmp_path / "n.safetensors")
    assert type(back) is type(net) and metadata["arch"] == net.arch == back.arch
    assert metadata["step"] == 12
    for key, value in net.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    assert [parameter.requires_grad for parameter in back.parameters()] == flags
    x = torch.randn(1, net.arch["input_nc"], 32, 32)
    assert torch.equal(back.train(net.training)(x), net(x))


def test_load_generator_is_in_eval_mode_and_channels_last(saved):
    net, path = saved
    back = load_generator(path)
    assert not back.training
    weight = dict(back.named_parameters())["model.4.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 16, 24)
    assert torch.equal(back(x), net(x))


@pytest.mark.parametrize("inside", ["run/weights", "run"])
def test_direction_chooses_the_generator_of_a_folder(inside, tmp_path):
    folder = tmp_path / inside
    folder.mkdir(parents=True)
    nets = {"AtoB": generator(1), "BtoA": generator(2)}
    for direction, name in (("AtoB", "G_A"), ("BtoA", "G_B")):
        save_network(folder / f"{name}.safetensors", nets[direction], step=1)
    for direction, net in nets.items():
        back = load_generator(tmp_path / "run", direction).state_dict()
        assert torch.equal(back["model.1.weight"], net.state_dict()["model.1.weight"])


def test_a_folder_without_generators_and_an_unknown_direction_are_refused(tmp_path, saved):
    assert "weights/G_B.safetensors" in refusal(tmp_path, load_generator, direction="BtoA")
    with pytest.raises(UserError, match="direction 'AB'"):
        load_generator(saved[1], "AB")


def test_a_discriminator_is_not_a_generator(tmp_path):
    path = tmp_path / "D_A.safetensors"
    save_network(path, NLayerDiscriminator(ndf=4), step=1)
    assert "NLayerDiscriminator" in refusal(path, load_generator)


def test_missing_files_folders_and_pickles_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "no.safetensors")
    assert "not a file" in refusal(tmp_path)
    for suffix in (".pt", ".pt2", ".ckpt", ".PKL"):
        (tmp_path / f"G{suffix}").write_bytes(b"x")
        assert f"{suffix} files are not read" in refusal(tmp_path / f"G{suffix}")


def test_files_from_before_the_newest_fields_of_arch_still_load(saved):
    """The header then lacked dropout and upsample."""
    net, path = saved
    arch = {k: v for k, v in net.arch.items() if k not in ("dropout", "upsample")}
    resave(path, arch=json.dumps(arch))
    back, _ = load_network(path)
    x = torch.randn(1, 3, 16, 24)
    assert back.arch == net.arch and torch.equal(back(x), net(x))


@pytest.mark.parametrize("size", [0, 5, 8, 200, 3000, -1])
def test_truncated_files_are_refused(size, saved):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:size])
    assert "truncated" in refusal(path)


def test_other_files_are_refused(saved):
    path = saved[1]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    assert "no safetensors file" in refusal(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    assert "no metadata" in refusal(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    assert "no metadata" in refusal(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "fastcyclegan/2"}, "format fastcyclegan/2"),
        ({"arch": None}, "damaged metadata"),
        ({"arch": "{"}, "damaged metadata"),
        ({"step": "seven"}, "damaged metadata"),
        ({"pixel_range": "linear255"}, "two pixel ranges"),
        ({"pixel_range": "sRGB"}, "pixel range 'sRGB'"),
        ({"arch": '{"class": "VAE"}'}, "VAE"),
        ({"arch": '{"class": []}'}, "unknown network"),
        ({"arch": "[" * 100_000}, "damaged metadata"),
        ({"arch": '["ResnetGenerator"]'}, "ResnetGenerator"),
        ({"arch": '{"class": "ResnetGenerator", "depth": 3}'}, "depth"),
        ({"arch": '{"class": "ResnetGenerator", "ngf": -1}'}, "cannot be built"),
        ({"arch": '{"class": "ResnetGenerator", "ngf": "4"}'}, "cannot be built"),
        ({"arch": '{"class": "ResnetGenerator", "ngf": 900000000}'}, "larger than 4096"),
        ({"arch": '{"class": "ResnetGenerator", "ngf": 2000}'}, "model.1.weight has shape"),
    ],
)
def test_metadata_that_describes_no_network_of_ours_is_refused(change, message, saved):
    resave(saved[1], **change)
    assert message in refusal(saved[1])


def test_missing_extra_and_misshapen_tensors_are_named(saved):
    path = saved[1]
    original = path.read_bytes()
    resave(path, lambda tensors: tensors.pop("model.4.weight"))
    assert "model.4.weight is missing" in refusal(path)
    path.write_bytes(original)
    resave(path, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert "extra is not part" in refusal(path)
    path.write_bytes(original)
    resave(path, lambda tensors: tensors.update({"model.1.bias": torch.zeros(5)}))
    assert "model.1.bias has shape (5,), not (4,)" in refusal(path)


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_else(saved, monkeypatch):
    path = saved[1]
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_network(path, generator(5), step=8)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
