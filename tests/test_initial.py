"""Training of every network by its options, and training that starts from files."""

import pytest
import torch

from fastcyclegan import command, load_generator, train
from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.models import build
from fastcyclegan.models.weights import load_network, save_network
from fastcyclegan.options import parse_explicit
from fastcyclegan.presets import apply_preset
from fastcyclegan.runs.checkpoint import latest_checkpoint, load_checkpoint
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.steps.assembly import make_networks
from fastcyclegan.steps.initial import CYCLEGAN, adopt
from tiny_runs import final_state, run_on_data

G = {"class": "ResnetGenerator", "ngf": 3, "n_blocks": 2}
D = {"class": "NLayerDiscriminator", "ndf": 5}


def write_all(folder, G=G, D=D, G_B=None, D_B=None):
    folder.mkdir(exist_ok=True)
    nets = {"G_A": G, "G_B": G_B or G, "D_A": D, "D_B": D_B or D}
    for seed, (name, arch) in enumerate(nets.items()):
        torch.manual_seed(seed)
        torch.save(build(arch).state_dict(), folder / f"latest_net_{name}.pth")
    return folder


def adopted(folder, *words):
    config, explicit = parse_explicit(
        TrainConfig, "train", "Train.", ["--init_from", str(folder), *words]
    )
    return adopt(apply_preset(config, explicit), explicit, CYCLEGAN)


@pytest.mark.parametrize(
    ("G", "D", "wanted"),
    [
        (G, D, {"netG": "resnet_2blocks", "ngf": 3, "netD": "basic", "ndf": 5}),
        (
            {**G, "norm": "batch", "dropout": True, "upsample": "resize"},
            {**D, "norm": "batch", "n_layers": 2},
            {"norm": "batch", "dropout": True, "upsample": "resize", "netD": "n_layers",
             "n_layers_D": 2},
        ),
        (
            {"class": "UnetGenerator", "ngf": 2, "num_downs": 7},
            {"class": "PixelDiscriminator", "ndf": 5},
            {"netG": "unet_128", "netD": "pixel", "dropout": False},
        ),
        ({**G, "padding": "zero"}, D, {"padding": "zero"}),
    ],
)  # fmt: skip
def test_options_and_weights_follow_the_files(G, D, wanted, tmp_path):
    config, told = adopted(write_all(tmp_path / "jz", G, D))
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert "pixel_range tanh" in told and f"ndf {D['ndf']}" in told
    networks = make_networks(config, torch.device("cpu"))
    for name, net in networks.items():
        state = torch.load(tmp_path / f"jz/latest_net_{name}.pth", weights_only=True)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_what_files_do_not_tell_stays_as_the_options_have_it(tmp_path):
    folder = write_all(tmp_path / "jz")
    config, told = adopted(folder, "--padding", "replicate")
    assert config.padding == "replicate" and "padding replicate" in told
    assert make_networks(config, torch.device("cpu"))["G_A"].arch["padding"] == "replicate"
    config, _ = adopted(folder, "--padding", "zero")
    with pytest.raises(UserError, match="--padding zero"):
        make_networks(config, torch.device("cpu"))
    unet = {"class": "UnetGenerator", "ngf": 2, "num_downs": 7}
    config, told = adopted(write_all(tmp_path / "unet", unet), "--dropout")
    assert config.dropout and "dropout True" in told
    assert make_networks(config, torch.device("cpu"))["G_B"].arch["dropout"]


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        (["--ngf", "64"], {}, "--ngf 64: "),
        (["--netG", "resnet_9blocks"], {}, "has resnet_2blocks; leave it out"),
        (["--input_nc", "1"], {}, "--input_nc 1: "),
        (["--norm", "batch"], {}, "--norm batch: "),
        (["--netD", "pixel"], {}, "--netD pixel: "),
        ([], {"G": D}, "holds a NLayerDiscriminator, not a generator"),
        ([], {"D": G}, "holds a ResnetGenerator, not a discriminator"),
        ([], {"G_B": D}, "latest_net_G_B.pth holds a NLayerDiscriminator"),
        ([], {"G_B": {**G, "input_nc": 1}}, "has input_nc 1, G_B needs 3"),
        ([], {"D_B": {**D, "input_nc": 6}}, "has input_nc 6, D_B needs 3"),
        ([], {"D": {**D, "norm": "batch"}}, "has norm instance, G_A needs batch"),
    ],
)
def test_files_that_do_not_fit_are_refused(words, change, said, tmp_path):
    folder = write_all(tmp_path / "jz", **change)
    with pytest.raises(UserError) as problem:
        config, _ = adopted(folder, *words)
        make_networks(config, torch.device("cpu"))
    assert said in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "johnson"], "--preset johnson sets netG johnson: "),
        (["--preset", "johnson", "--netG", "resnet_2blocks"], "--preset johnson sets ngf 32: "),
        (["--preset", "small", "--netG", "resnet_2blocks", "--ngf", "3"], "small sets ndf 32: "),
    ],
)
def test_a_chosen_preset_that_contradicts_the_files_is_refused(words, said, tmp_path):
    with pytest.raises(UserError) as problem:
        adopted(write_all(tmp_path / "jz"), *words)
    assert said in str(problem.value) and "leave the preset out" in str(problem.value)


def test_the_range_of_a_preset_is_refused_or_assumed_by_its_name(tmp_path):
    """Of our own files, which tell it, and of others', which do not."""
    johnson = {"class": "JohnsonGenerator", "ngf": 32}
    for name, arch in {"G_A": johnson, "G_B": johnson, "D_A": D, "D_B": D}.items():
        save_network(tmp_path / f"{name}.safetensors", build(arch), step=1)
    with pytest.raises(UserError, match=r"johnson sets pixel_range tanh255: .* has tanh; give"):
        adopted(tmp_path, "--preset", "johnson")
    config, _ = adopted(tmp_path, "--preset", "johnson", "--pixel_range", "tanh")
    assert config.pixel_range == "tanh"
    words = ["--preset", "johnson", "--netG", "resnet_2blocks", "--ngf", "3"]
    config, told = adopted(write_all(tmp_path / "jz"), *words)
    assert config.pixel_range == "tanh255"
    assert "assumed is pixel_range tanh255 (of --preset johnson), padding reflect" in told
    config, told = adopted(tmp_path / "jz")
    assert told.endswith("assumed is pixel_range tanh, padding reflect")


def test_a_preset_that_nobody_chose_gives_way_to_the_files(here, capsys):
    """The one for a CPU without images."""
    folder = write_all(here / "jz")
    words = ["--init_from", str(folder), "--device", "cpu", "--steps", "1", "--crop_size", "32"]
    assert command.run(train.main, [*words, "--load_size", "32"]) == 0
    out = capsys.readouterr().out
    assert "using --preset small" in out and "netG resnet_2blocks, ngf 3" in out
    assert "from flags follows netG resnet_2blocks, ngf 3, ndf 5" in out


def test_a_judge_of_another_range_is_named(tmp_path):
    for name, arch in {"G_A": G, "G_B": G, "D_A": D, "D_B": D}.items():
        other = "tanh255" if name == "D_B" else "tanh"
        save_network(tmp_path / f"{name}.safetensors", build(arch), step=1, pixel_range=other)
    config, _ = adopted(tmp_path)
    with pytest.raises(UserError, match="has pixel_range tanh255, D_B needs tanh"):
        make_networks(config, torch.device("cpu"))


def test_training_starts_from_the_files(here, capsys):
    """With a rate of almost 0 the weights stay what they were; a run of ours is a start too."""
    folder = write_all(here / "jz", {**G, "ngf": 4, "n_blocks": 1}, {**D, "ndf": 4})
    words = ["--steps", "1", "--lr", "1e-30"]
    assert run_on_data("--init_from", str(folder), "--name", "first", *words) == 0
    assert "starting from" in capsys.readouterr().out
    first = here / "checkpoints/first"
    for name in ("G_A", "D_B"):
        truth = load_network(folder / f"latest_net_{name}.pth")[0].state_dict()
        found = load_network(first / f"weights/{name}.safetensors")[0].state_dict()
        assert all(torch.equal(found[key], value) for key, value in truth.items())
    assert run_on_data("--init_from", str(first), "--name", "second", *words) == 0
    assert "assumed" not in capsys.readouterr().out
    one, two = (final_state(here / "checkpoints" / n)[0]["G_B"] for n in ("first", "second"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_folder_that_lacks_a_file_gives_one_line_and_code_2(here, capsys):
    folder = write_all(here / "jz")
    (folder / "latest_net_D_A.pth").unlink()
    for words in (["--init_from", "jz"], ["--init_from", "nowhere"]):
        assert run_on_data("--steps", "1", *words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words[1] in err and "latest_net_" in err
    assert not (here / "checkpoints").exists()


NETWORKS = {
    "batch and dropout": "--norm batch --dropout --batch_size 2 --init_type xavier",
    "none, resize, pixel": "--norm none --upsample resize --netD pixel --init_type kaiming",
    "orthogonal, grey to RGBA": "--input_nc 1 --output_nc 4 --lambda_identity 0 --init_type "
    "orthogonal --norm batch",
    "U-Net": "--netG unet_128 --ngf 2 --crop_size 128 --load_size 128 --dropout --pool_size 1",
}


@pytest.mark.parametrize("case", NETWORKS)
def test_every_network_trains_and_resumes_bit_for_bit(here, case):
    """Statistics of batch norms and the draws of dropout are part of what is resumed."""
    words = ["--display_freq", "1", *NETWORKS[case].split()]
    assert run_on_data("--name", "whole", "--steps", "4", *words) == 0
    assert run_on_data("--name", "parts", "--steps", "2", *words) == 0
    assert run_on_data("--name", "parts", "--steps", "4", *words) == 0
    whole, parts = (final_state(here / "checkpoints" / name) for name in ("whole", "parts"))
    for name, state in whole[0].items():
        assert all(torch.equal(state[key], parts[0][name][key]) for key in state), name
    assert whole[1].keys() == parts[1].keys()
    assert all(torch.equal(whole[1][key], parts[1][key]) for key in whole[1])
    if "batch" in NETWORKS[case]:
        # 3 passes of G_A per step with the identity loss, 2 without; previews are not counted
        passes = 4 * (2 if "identity 0" in NETWORKS[case] else 3)
        assert whole[0]["G_A"]["model.2.num_batches_tracked"] == passes
    assert not load_generator(here / "checkpoints/whole").training


def test_a_dropout_run_that_forgets_its_draws_differs(here, monkeypatch):
    """The comparison above would notice."""
    words = ["--dropout", "--steps"]
    assert run_on_data("--name", "whole", *words, "4") == 0
    assert run_on_data("--name", "parts", *words, "2") == 0
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert run_on_data("--name", "parts", *words, "4") == 0
    states = []
    for name in ("whole", "parts"):
        _, path = latest_checkpoint(RunFolder(here / "checkpoints" / name))
        states.append(load_checkpoint(path)[0]["G_A"])
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_unet_needs_sides_of_its_multiple(here, capsys):
    words = "--netG unet_128 --ngf 2 --crop_size 128 --preprocess none --steps 1 --pool_size 0"
    assert run_on_data(*words.split()) == 2
    assert "multiples of 128 pixels" in capsys.readouterr().err
