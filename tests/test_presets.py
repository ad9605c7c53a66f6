"""Presets are data: what they set is told, flags override it, contradictions are one clear line."""

import json
import shlex

import pytest

from fastcyclegan import command, train
from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.options import parse_explicit
from fastcyclegan.presets import ABOUT, IMPLIED, PRESETS, apply_preset, blame, told
from house_rules import ROOT

FIELDS = TrainConfig.__dataclass_fields__


def parse(*words: str) -> tuple[TrainConfig, frozenset[str]]:
    return parse_explicit(TrainConfig, "train", "Train.", words)


def words_for(name: str, value: object) -> list[str]:
    if value is True:
        return [f"--{name}"]
    return [f"--{name}", str(value)]


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as problem:
        train.main(list(words))
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_its_options_typed_out_say(name):
    config = apply_preset(*parse("--preset", name))
    typed, _ = parse(*(word for pair in PRESETS[name].items() for word in words_for(*pair)))
    assert {k: getattr(config, k) for k in PRESETS[name]} == PRESETS[name]
    assert [k for k in FIELDS if getattr(config, k) != getattr(typed, k)] == ["preset"]
    train.check(config)
    assert set(PRESETS) == set(ABOUT)


def test_the_paper_is_the_default():
    config, explicit = parse("--preset", "paper")
    plain = apply_preset(config, explicit)
    assert all(getattr(plain, name) == FIELDS[name].default for name in FIELDS if name != "preset")


def test_the_article_is_what_its_text_says():
    config = apply_preset(*parse("--preset", "article"))
    wanted = {
        "updates": "sequential", "netG": "resnet_6blocks", "ngf": 64, "crop_size": 256,
        "load_size": 256, "batch_size": 1, "pool_size": 50, "lambda_A": 10.0, "lambda_B": 10.0,
        "lambda_identity": 0.0, "gan_mode": "lsgan", "lr": 2e-4, "n_epochs": 100,
        "n_epochs_decay": 100, "lr_policy": "article", "residual_relu": False,
        "pixel_range": "tanh", "no_flip": True, "beta1": 0.5, "norm": "instance",
    }  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert apply_preset(*parse("--preset", "article", "--residual_relu")).residual_relu


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_can_be_overridden(name):
    """One by one, by a value that is another one; a switch by the flag that takes it back."""
    for option, value in PRESETS[name].items():
        if value is True:
            words, other = [f"--{FIELDS[option].metadata['inverse']}"], False
        else:
            choices = [x for x in FIELDS[option].metadata.get("choices", ()) if x != value]
            other = (
                choices[0]
                if choices
                else "unet_128"
                if option == "netG"
                else value * 2 or type(value)(1)
            )
            words = words_for(option, other)
        if option == "model":
            continue
        config, explicit = parse("--preset", name, *words)
        resolved = apply_preset(config, explicit)
        assert getattr(resolved, option) == other, option
        others = {k: v for k, v in PRESETS[name].items() if k != option}
        shown = f"{option} {other}"
        if resolved.model == "dcgan" and option == "crop_size":
            others["load_size"] = other  # images are scaled to what they are cropped to
            shown += f"; from flags follows load_size {other}"
        assert {k: getattr(resolved, k) for k in others} == others
        assert told(resolved, explicit).partition("; flags set ")[2] == shown


def test_what_is_set_is_told():
    config, explicit = parse("--preset", "johnson", "--ngf", "8")
    assert told(apply_preset(config, explicit), explicit) == (
        "--preset johnson sets netG johnson, johnson_padding start, pixel_range tanh255; "
        "flags set ngf 8"
    )


NARROW = "--ngf 2 --ndf 2 --device cpu --dataroot data --steps 1"
SETS = {
    "dcgan --crop_size 32 --batch_size 2 --flip": (
        "model dcgan, preprocess resize_and_center_crop, n_epochs 25, n_epochs_decay 0, "
        "print_freq 6400, display_freq 12800, save_epoch_freq 1; flags set crop_size 32, "
        "no_flip False, batch_size 2; from flags follows load_size 32"
    ),
    "small --netG resnet_1blocks --lr 0.1": (
        "load_size 64, crop_size 64, fit_schedule, print_freq 20, display_freq 100, "
        "save_every_steps 350; flags set netG resnet_1blocks, ngf 2, ndf 2, steps 1"
    ),
}


@pytest.mark.parametrize("words", SETS)
def test_the_command_prints_what_holds_and_trains_with_it(here, capsys, words):
    wanted = f"--preset {words.split()[0]} sets {SETS[words]}"
    assert command.run(train.main, ["--preset", *words.split(), *NARROW.split()]) == 0
    assert wanted in capsys.readouterr().out.splitlines()
    settled = json.loads((here / "checkpoints/0001/config.json").read_text())["train"]
    for part in SETS[words].replace("; flags set ", ", ").split("; ")[0].split(", "):
        name, _, value = part.partition(" ")
        assert str(settled[name]) == (value or "True")
    assert settled["load_size"] == settled["crop_size"] == (32 if "dcgan" in words else 64)


def test_a_dcgan_has_the_papers_batch_and_size_unless_others_are_given():
    for words in (["--model", "dcgan"], ["--preset", "dcgan"]):
        config = apply_preset(*parse(*words))
        assert (config.batch_size, config.crop_size, config.load_size) == (128, 64, 64)
    config = apply_preset(*parse("--model", "dcgan", "--batch_size", "64", "--load_size", "80"))
    assert (config.batch_size, config.crop_size, config.load_size) == (64, 64, 80)


def test_johnson_has_its_own_width_unless_one_is_given():
    assert apply_preset(*parse("--netG", "johnson")).ngf == 32
    assert apply_preset(*parse("--netG", "johnson", "--ngf", "64")).ngf == 64
    assert apply_preset(*parse("--netG", "johnson", "--preset", "paper")).ngf == 64
    assert apply_preset(*parse()).ngf == 64
    assert all(set(values) <= set(FIELDS) for values in IMPLIED.values())


def test_list_presets_shows_all_and_trains_nothing(here, capsys):
    assert command.run(train.main, ["--list-presets", "--dataroot", "data"]) == 0
    out = capsys.readouterr().out
    for name, values in PRESETS.items():
        assert f"{name}: {ABOUT[name]}\n" in out
        for option, value in values.items():
            assert (option if value is True else f"{option} {value}") in out
    assert not (here / "checkpoints").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_readme_has_a_command_for_each(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, module, *words = shlex.split(row.rsplit("`", 2)[1])
    assert module == "fastcyclegan.train"
    config, explicit = parse(*words)
    config = apply_preset(config, explicit)
    train.check(config)
    assert {k: getattr(config, k) for k in PRESETS[name]} == PRESETS[name]


def test_contradicting_flags_are_explained(here):
    """What a preset had set is named where a flag does not go with it."""
    assert refusal("--preset", "small", "--crop_size", "128") == (
        "--load_size 64 is smaller than --crop_size 128 (--preset small sets load_size 64: give "
        "your own)"
    )
    said = refusal("--preset", "johnson", "--residual_relu")
    assert said.startswith("--residual_relu: johnson has none; leave it out")
    said = refusal("--preset", "johnson", "--netG", "unet_256", "--johnson_padding", "each")
    assert said == "--johnson_padding each: unet_256 has none; leave it out"
    assert "did you mean article?" in refusal("--preset", "artcle")
    assert not (here / "checkpoints").exists()


def test_only_a_presets_own_values_are_blamed():
    config, explicit = parse("--preset", "small", "--load_size", "32")
    message = "--load_size 32 is smaller than --crop_size 64"
    said = blame(message, config, explicit)
    assert said == f"{message} (--preset small sets crop_size 64: give your own)"
    assert blame("--seed -1", config, explicit) == "--seed -1"
