"""Options: JZ's names and defaults, either dash, and one clear line for what is wrong."""

import pytest

from fastcyclegan.config import TrainConfig, TranslateConfig, generator_depth
from fastcyclegan.errors import UserError
from fastcyclegan.jz_options import MAPPED, REMOVED, REMOVED_FROM_TRANSLATE
from fastcyclegan.options import parse_explicit
from fastcyclegan.train import check


def parse(*words: str) -> tuple[TrainConfig, frozenset[str]]:
    return parse_explicit(TrainConfig, "train", "Train.", words)


def test_defaults_are_jz():
    config, explicit = parse()
    assert explicit == frozenset()
    wanted = {
        "checkpoints_dir": "./checkpoints", "input_nc": 3, "output_nc": 3, "ngf": 64, "ndf": 64,
        "netD": "basic", "netG": "resnet_9blocks", "n_layers_D": 3, "norm": "instance",
        "init_type": "normal", "init_gain": 0.02, "direction": "AtoB", "num_threads": 4,
        "batch_size": 1, "load_size": 286, "crop_size": 256, "preprocess": "resize_and_crop",
        "n_epochs": 100, "n_epochs_decay": 100, "beta1": 0.5, "lr": 0.0002, "gan_mode": "lsgan",
        "pool_size": 50, "lr_policy": "linear", "lambda_A": 10.0, "lambda_B": 10.0,
        "lambda_identity": 0.5, "print_freq": 100, "display_freq": 400, "save_epoch_freq": 5,
        "no_flip": False, "serial_batches": False,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_dashes_and_underscores_are_the_same():
    for words in (["--load_size", "300"], ["--load-size", "300"], ["--load-size=300"]):
        config, explicit = parse(*words)
        assert config.load_size == 300 and explicit == {"load_size"}
    assert parse("--dataroot", "my-folder_1")[0].dataroot == "my-folder_1"
    assert parse("--no-flip")[0].no_flip is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lod_size", "3"], "--lod_size: unknown option (did you mean --load_size?)"),
        (["--gpu_ids", "0"], "--gpu_ids is not an option here: use --device"),
        (["--netD", "basc"], "did you mean basic?"),
        (["--model", "pix2pix"], "--model pix2pix: out of scope"),
        (["--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["--batch_size", "x"], "--batch_size"),
        (["--lr", "nan"], "--lr nan: not a number"),
        (["--lr", "0"], "--lr 0.0: must be above 0"),
        (["--lr", "inf"], "--lr inf: must be at most"),
        (["--lr"], "--lr"),
        (["--max_bad", "1.5"], "--max_bad 1.5: must be at most 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["horses"], "'horses' stands alone"),
        (["--no_flip=yes"], "--no_flip"),
    ],
)
def test_wrong_words_give_one_clear_line(words, said):
    with pytest.raises(UserError) as problem:
        parse(*words)
    assert said in str(problem.value) and "\n" not in str(problem.value)


def test_removed_options_say_what_to_use():
    for name, advice in REMOVED.items():
        with pytest.raises(UserError, match=f"--{name} is not an option here") as problem:
            parse(f"--{name}", "1")
        assert advice in str(problem.value)
        for word in advice.split():
            if word.startswith("--"):
                known = TrainConfig.__dataclass_fields__ | {"help": None}
                assert word.strip("-,;:()") in known


def test_mapped_flags_say_the_same_here():
    for dash in ("--continue_train", "--continue-train"):
        config, explicit = parse(dash)
        assert config.resume == "auto" and explicit == {"resume"}
    assert parse("--no_dropout") == parse()
    with pytest.raises(UserError, match="--dropout and --no_dropout"):
        parse("--no-dropout", "--dropout")
    assert set(MAPPED).isdisjoint(REMOVED) and set(REMOVED).isdisjoint(parse()[0].__dict__)


def test_options_of_jz_test_are_refused_by_translate():
    for name, advice in REMOVED_FROM_TRANSLATE.items():
        with pytest.raises(UserError, match=f"--{name} is not an option here") as problem:
            parse_explicit(TranslateConfig, "translate", "Translate.", [f"--{name}", "1"])
        assert advice in str(problem.value)
        for word in advice.split():
            if word.startswith("--"):
                assert word.strip("-,;:()") in TranslateConfig.__dataclass_fields__


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--netG", "resnet_0blocks"], "--netG"),
        (["--netG", "unet"], "--netG unet"),
        (["--fit_schedule"], "--fit_schedule needs --steps"),
        (["--n_epochs", "0", "--n_epochs_decay", "0"], "nothing to train"),
        (["--crop_size", "255"], "--crop_size 255: must be a multiple of 4"),
        (["--netG", "unet_256", "--crop_size", "128"], "must be a multiple of 256 for unet_256"),
        (["--netG", "unet_128", "--crop_size", "64", "--preprocess", "none"], "multiple of 128"),
        (["--netG", "unet_128", "--upsample", "resize"], "--upsample resize: unet_128 has none"),
        (["--netG", "unet_128", "--padding", "zero"], "--padding zero: unet_128 has none"),
        (["--output_nc", "1"], "--lambda_identity 0"),
        (["--netG", "johnson", "--padding", "zero"], "--padding zero: johnson has none"),
        (["--netG", "johnson", "--dropout"], "--dropout: johnson has none; leave it out"),
        (["--netG", "unet_256", "--residual_relu"], "--residual_relu: unet_256 has none"),
        (["--johnson_padding", "each"], "--johnson_padding each: resnet_9blocks has none"),
        (["--impl", "reference", "--compile"], "--impl reference"),
        (["--compile_scope", "step"], "--compile_scope step needs --compile"),
    ],
)
def test_contradictions_are_refused(words, said):
    with pytest.raises(UserError) as problem:
        check(parse(*words)[0])
    assert said in str(problem.value) and "\n" not in str(problem.value)


def test_generator_depth():
    assert [generator_depth(f"resnet_{n}blocks") for n in (1, 9, 12)] == [
        ("resnet", 1),
        ("resnet", 9),
        ("resnet", 12),
    ]
    assert generator_depth("unet_128") == ("unet", 7) and generator_depth("unet_256")[1] == 8
