"""JZ's .pth files: what network they are of, files of old, and everything that must be refused."""

import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import command, translate
from fastcyclegan.errors import UserError
from fastcyclegan.models import build
from fastcyclegan.models.weights import load_generator, load_network

RESNET = {"class": "ResnetGenerator", "ngf": 4, "n_blocks": 2}
UNET = {"class": "UnetGenerator", "ngf": 2, "num_downs": 7}
PATCHGAN = {"class": "NLayerDiscriminator", "ndf": 4}


def write(path, arch, change=None, **options):
    """A .pth of the network of ``arch``, as torch.save writes it; returns the network."""
    torch.manual_seed(0)
    net = build(arch)
    state = OrderedDict((k, v.clone().contiguous()) for k, v in net.state_dict().items())
    if change:
        change(state)
    torch.save(state, path, **options)
    return net


def refusal(path, load=load_network):
    with pytest.raises(UserError) as problem:
        load(path)
    said = str(problem.value)
    assert "\n" not in said and str(path) in said
    return said.removeprefix(str(path))


@pytest.mark.parametrize(
    ("arch", "assumed"),
    [
        ({**RESNET, "n_blocks": 6}, {"padding": "reflect"}),
        ({**RESNET, "n_blocks": 9, "norm": "batch"}, {"padding": "reflect"}),
        ({**RESNET, "norm": "none", "dropout": True}, {"padding": "reflect"}),
        ({**RESNET, "upsample": "resize"}, {"padding": "reflect"}),
        ({**RESNET, "padding": "zero", "input_nc": 1}, {}),
        ({**RESNET, "padding": "zero", "dropout": True, "output_nc": 4}, {}),
        ({**UNET, "norm": "batch", "input_nc": 1}, {"dropout": False}),
        ({**UNET, "num_downs": 8, "output_nc": 1}, {"dropout": False}),
        ({**UNET, "norm": "none"}, {"dropout": False}),
        ({**PATCHGAN, "n_layers": 1}, {}),
        ({**PATCHGAN, "n_layers": 5, "norm": "batch", "input_nc": 6}, {}),
        ({**PATCHGAN, "norm": "none"}, {}),
        ({"class": "PixelDiscriminator", "ndf": 4, "norm": "batch"}, {}),
        ({"class": "PixelDiscriminator", "ndf": 4, "norm": "none"}, {}),
        ({"class": "PixelDiscriminator", "ndf": 4, "input_nc": 1}, {}),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_network_is_found_from_the_keys(arch, assumed, zipped, tmp_path):
    path = tmp_path / "latest_net_X.pth"
    net = write(path, arch, _use_new_zipfile_serialization=zipped)
    back, metadata = load_network(path)
    assert back.arch == net.arch == metadata["arch"]
    assert metadata["assumed"] == assumed and metadata["pixel_range"] == "tanh"
    state = back.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_load_generator_reads_files_and_folders_of_jz(tmp_path):
    nets = {n: write(tmp_path / f"latest_net_{n}.pth", {**RESNET, "ngf": w}) for n, w in
            (("G_A", 4), ("G_B", 5))}  # fmt: skip
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_generator(tmp_path / "latest_net_G_A.pth")(x), nets["G_A"](x))
    back = load_generator(tmp_path, "BtoA")
    assert torch.equal(back(x), nets["G_B"](x)) and not back.training


def old_instance_norm(counted):
    """Running statistics under each instance norm, as before torch 0.4, or in between."""

    def change(state):
        for key in build(RESNET).norm_keys:
            state[f"{key}.running_mean"] = torch.rand(3)
            state[f"{key}.running_var"] = torch.rand(3)
            if counted:
                state[f"{key}.num_batches_tracked"] = torch.tensor(5)

    return change


@pytest.mark.parametrize("counted", [False, True])
def test_statistics_of_old_instance_norms_are_dropped(counted, tmp_path):
    path = tmp_path / "latest_net_G.pth"
    legacy = {"_use_new_zipfile_serialization": False}
    net = write(path, RESNET, old_instance_norm(counted), **legacy)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_generator(path)(x), net(x))


def test_statistics_that_stand_under_no_norm_are_refused(tmp_path):
    write(tmp_path / "G.pth", RESNET, lambda s: s.update({"model.3.running_mean": torch.rand(3)}))
    assert "model.3.running_mean is not part" in refusal(tmp_path / "G.pth")


def test_batch_norms_that_do_not_count_have_seen_nothing(tmp_path):
    def uncounted(state):
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]

    net = write(tmp_path / "G.pth", {**RESNET, "norm": "batch"}, uncounted)
    back = load_generator(tmp_path / "G.pth")
    assert back.state_dict()["model.2.num_batches_tracked"] == 0
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(back(x), net.eval()(x))


def test_half_precision_comes_back_in_fp32(tmp_path):
    write(tmp_path / "G.pth", RESNET, lambda s: s.update({k: v.half() for k, v in s.items()}))
    net = load_generator(tmp_path / "G.pth")
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("model.4.weight"), "model.4.weight is missing"),
        (lambda s: s.pop("model.11.conv_block.5.bias"), "model.11.conv_block.5.bias is missing"),
        (lambda s: s.pop("model.1.weight"), "none of the networks"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not part of the network"),
        (lambda s: s.update({"a\nb": torch.zeros(1)}), "a\\nb is not part"),
        (lambda s: s.update({"model.4.weight": torch.zeros(8, 3, 3, 3)}), "has shape (8, 3, 3, 3)"),
        (lambda s: s.update({"model.1.weight": torch.zeros(5, 3, 7, 7)}), "(4,), not (5,)"),
        (lambda s: s.update({"model.1.weight": torch.zeros(4, 3)}), "none of the networks"),
        (lambda s: s.update({"model.99999.conv_block.1.weight": s["model.1.weight"]}), "4096"),
        (
            lambda s: [s.update({k.replace("conv_block", "block"): s.pop(k)}) for k in list(s)],
            "two convolutions",
        ),
        (lambda s: s.clear(), "not a dict of weights"),
    ],
)
def test_what_is_none_of_jz_networks_is_refused(change, said, tmp_path):
    write(tmp_path / "G.pth", RESNET, change)
    assert said in refusal(tmp_path / "G.pth")


def test_a_discriminator_is_not_a_generator(tmp_path):
    write(tmp_path / "latest_net_D_A.pth", PATCHGAN)
    said = refusal(tmp_path / "latest_net_D_A.pth", load_generator)
    assert "holds a NLayerDiscriminator, not a generator" in said


class Touch:
    """Unpickles to a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def rezip(path, compression=zipfile.ZIP_STORED, twice=False):
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old:
        records = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in records + records[:1] * twice:
            new.writestr(name, data)


def no_weights(marker):
    """Case: something that torch.save takes, and what the refusal says."""
    some = torch.zeros(4)
    return {
        "code in a zip": ({"w": Touch(marker)}, "no plain weights file: it holds"),
        "code beside weights": ({**build(RESNET).state_dict(), "z": Touch(marker)}, "no plain"),
        "a whole module": (torch.nn.Conv2d(1, 1, 1), "conv.Conv2d; save the state_dict() alone"),
        "a list": ([some], "a list, not a dict"),
        "a tensor": (some, "tensor on cpu, not a dict"),
        "nested": ({"state": {"w": some}}, "a dict under 'state'"),
        "a number": ({"epoch": 3}, "a int under 'epoch'"),
        "a number as key": ({3: some}, "under 3"),
        "sparse": ({"w": torch.eye(3).to_sparse()}, "sparse_coo tensor"),
        "meta": ({"w": torch.zeros(9, device="meta")}, "on meta"),
        "expanded": ({"w": torch.zeros(1).expand(1 << 40)}, "larger than the file"),
        "one storage often": ({str(i): some.expand(64, 4) for i in range(99)}, "larger than"),
    }


def hostile(path, marker):
    """Puts one file after the other at ``path``; yields its name and what the refusal says."""
    some = torch.zeros(4)
    for case, (content, said) in no_weights(marker).items():
        torch.save(content, path)
        yield case, said
    torch.save({"w": Touch(marker)}, path, _use_new_zipfile_serialization=False)
    yield "code in an old file", "no plain weights file"
    path.write_bytes(pickle.dumps({"w": Touch(marker)}, protocol=2))
    yield "a plain pickle", "no plain weights file"
    path.write_bytes(pickle.dumps({"w": Touch(marker)}, protocol=4))
    yield "a newer pickle", "not written by torch.save"
    torch.save({"w": torch.zeros(1 << 20)}, path)
    rezip(path, zipfile.ZIP_DEFLATED)
    yield "a bomb", "compressed or repeated"
    noise = np.random.default_rng(0).integers(0, 256, 9999, dtype=np.uint8)
    torch.save({"w": torch.from_numpy(noise)}, path)
    rezip(path, zipfile.ZIP_DEFLATED)
    yield "compressed, but no bomb", "compressed or repeated"
    torch.save({"w": some}, path)
    with pytest.warns(UserWarning, match="Duplicate"):
        rezip(path, twice=True)
    yield "records twice", "compressed or repeated"
    torch.save({"w": some}, path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(file.namelist()[0].replace("data.pkl", "constants.pkl"), b"")
    yield "what torch takes for TorchScript", "is a program"
    torch.save(build(RESNET).state_dict(), path)
    whole = path.read_bytes()
    for size in (0, 1, 5, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        yield f"{size} bytes of it", ""
    path.write_bytes(b"PK\x03\x04" + bytes(5000))
    yield "not a zip", "truncated or damaged"


def test_hostile_and_damaged_files_are_refused_and_nothing_runs(tmp_path):
    path, marker = tmp_path / "G.pth", tmp_path / "marker"
    cases = 0
    for case, said in hostile(path, marker):
        reason = refusal(path)
        assert said in reason, case
        # torch's own words end in how to execute the file
        assert "weights_only" not in reason and "\x1b" not in reason and len(reason) < 400, case
        assert not marker.exists(), case
        cases += 1
    assert cases == 26


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path):
    """The pickle says 65,535 floats, the record holds 4: reading on would leave the buffer."""
    path = tmp_path / "G.pth"
    for zipped in (True, False):
        torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        if zipped:
            with zipfile.ZipFile(io.BytesIO(data)) as old:
                records = {info.filename: old.read(info) for info in old.infolist()}
            name = next(name for name in records if name.endswith("data.pkl"))
            records[name] = records[name].replace(b"K\x04", b"M\xff\xff")
            with zipfile.ZipFile(path, "w") as new:
                for name, record in records.items():
                    new.writestr(name, record)
        else:
            path.write_bytes(data.replace(b"K\x04", b"M\xff\xff"))
        assert "damaged" in refusal(path)


def test_switches_of_torch_do_not_open_the_door(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"w": Touch(tmp_path / "marker")}, tmp_path / "G.pth")
    assert "no plain weights file" in refusal(tmp_path / "G.pth")
    assert not (tmp_path / "marker").exists()


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "G.pth", "wb") as file:
        file.truncate(4 * 2**30 + 1)
    assert "larger than 4 GiB" in refusal(tmp_path / "G.pth")


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def run_translate(tmp_path, weights):
    words = ["--weights", weights, "--input", tmp_path / "in.png", "--output", tmp_path / "o.png"]
    return command.run(translate.main, [*map(str, words), "--device", "cpu"])


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        (RESNET, "assumed is pixel_range tanh, padding reflect"),
        ({**UNET, "norm": "batch"}, "assumed is pixel_range tanh, dropout False"),
    ],
)
def test_translate_takes_a_pth_and_says_what_it_assumes(arch, said, tmp_path, picture, capsys):
    write(tmp_path / "latest_net_G.pth", arch)
    assert run_translate(tmp_path, tmp_path / "latest_net_G.pth") == 0
    out = capsys.readouterr().out
    assert f"{arch['class']} (" in out and said in out
    with Image.open(tmp_path / "o.png") as image:
        assert image.size == (50, 40)


def test_translate_refuses_in_one_line_with_code_2(tmp_path, picture, capsys):
    write(tmp_path / "D.pth", PATCHGAN)
    write(tmp_path / "short.pth", RESNET, lambda s: s.pop("model.4.weight"))
    torch.save({"w": Touch(tmp_path / "marker")}, tmp_path / "evil.pth")
    write(tmp_path / "two.pth", {**RESNET, "output_nc": 2})
    refused = {"D": "not a generator", "short": "missing", "evil": "no plain", "two": "output_nc 2"}
    for name, said in refused.items():
        assert run_translate(tmp_path, tmp_path / f"{name}.pth") == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "marker").exists() and not (tmp_path / "o.png").exists()
