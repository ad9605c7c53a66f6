"""docs/options.md and docs/from-jz.md are complete and say what the parsers do."""

import os
import re
import shlex
from pathlib import Path

import pytest

from fastcyclegan.config import (
    CheckpointConfig,
    DoctorConfig,
    ExportConfig,
    ReportConfig,
    SampleConfig,
    TrainConfig,
    TranslateConfig,
    profile_window,
)
from fastcyclegan.errors import UserError
from fastcyclegan.jz_options import MAPPED
from fastcyclegan.options import parse, parse_explicit
from fastcyclegan.scores import EvaluateConfig
from fastcyclegan.train import check
from house_rules import ROOT

CONFIGS = {"train": TrainConfig, "translate": TranslateConfig, "sample": SampleConfig}
CONFIGS |= {"evaluate": EvaluateConfig, "export": ExportConfig, "doctor": DoctorConfig}
CONFIGS |= {"checkpoint": CheckpointConfig, "report": ReportConfig}
# Each section of options.md with the names that JZ's code has, or had, in that place.
SECTIONS = {
    "train.py: base options": """
        dataroot name checkpoints_dir model input_nc output_nc ngf ndf netD netG n_layers_D norm
        init_type init_gain no_dropout dataset_mode direction serial_batches num_threads batch_size
        load_size crop_size max_dataset_size preprocess no_flip display_winsize epoch load_iter
        verbose suffix use_wandb wandb_project_name""",
    "train.py: training options": """
        display_freq update_html_freq print_freq no_html save_latest_freq save_epoch_freq
        save_by_iter continue_train epoch_count phase n_epochs n_epochs_decay beta1 lr gan_mode
        pool_size lr_policy lr_decay_iters""",
    "train.py: options that a model adds": "lambda_A lambda_B lambda_identity lambda_L1",
    "test.py: its own options, given to train": """
        results_dir aspect_ratio eval num_test model_suffix""",
    "Removed from JZ, still in old commands": """
        gpu_ids display_id display_port display_server display_env display_ncols which_model_netG
        which_model_netD which_direction loadSize fineSize resize_or_crop niter niter_decay no_lsgan
        nThreads batchSize identity how_many which_epoch""",
}
TRANSLATE = "test.py, given to translate"
# What train takes where JZ's default is no value for it.
GIVEN = {"dataroot": "data", "max_dataset_size": "10"}
OTHER_DEFAULTS = {"dataroot": None, "name": None, "max_dataset_size": None}
ROW = re.compile(r"\| `--(\w+)` \| (.*?) ?\| (accepted|mapped|refused) \| (.*?) ?\|")
REQUIRED = ["--weights", "w", "--input", "i", "--output", "o"]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(section: str) -> dict[str, tuple[str, str, str]]:
    """Of a section's table: name to (JZ's default, what becomes of it, the last column)."""
    body = page("options.md").split(f"## {section}\n")[1].partition("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found) and len({m[1] for m in found}) == len(lines)
    return {m[1]: (m[2], m[3], m[4]) for m in found}


ALL_ROWS = [
    pytest.param(name, *row, id=name) for section in SECTIONS for name, row in rows(section).items()
]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_of_jz_has_its_row(section):
    assert list(rows(section)) == SECTIONS[section].split()


def words_for(name: str, default: str) -> list[str]:
    return [f"--{name}"] if default == "flag" else [f"--{name}", GIVEN.get(name, default)]


@pytest.mark.parametrize(("name", "default", "fate", "text"), ALL_ROWS)
def test_what_the_page_says_is_what_train_does(name, default, fate, text):
    if fate == "refused":
        with pytest.raises(UserError) as problem:
            parse(TrainConfig, "train", "", words_for(name, default))
        assert str(problem.value) == f"--{name} is not an option here: {text.replace('`', '')}"
        return
    config, explicit = parse_explicit(TrainConfig, "train", "", words_for(name, default))
    if fate == "mapped":
        assert name in MAPPED and name not in TrainConfig.__dataclass_fields__
        return
    assert explicit == {name}
    ours = TrainConfig.__dataclass_fields__[name].default
    if name in OTHER_DEFAULTS:
        assert ours is OTHER_DEFAULTS[name]
    else:
        assert ours is False if default == "flag" else str(ours) == default
        assert default == "flag" or getattr(config, name) == ours


@pytest.mark.parametrize(("name", "default", "fate", "text"), ALL_ROWS)
def test_values_that_the_page_lists(name, default, fate, text):
    """Those behind ``values:`` are taken, those behind ``refused:`` are not."""
    taken, _, refused = text.partition("refused:")
    values = re.findall(r"`([\w]+)`", taken.partition("values:")[2])
    for value in values:
        check(parse(TrainConfig, "train", "", [f"--{name}", value, "--lambda_identity", "0"]))
    choices = TrainConfig.__dataclass_fields__[name].metadata.get("choices") if values else None
    assert not choices or sorted(map(str, choices)) == sorted(values)
    for value in re.findall(r"`([\w]+)`", refused):
        with pytest.raises(UserError, match=f"--{name} {value}: "):
            parse(TrainConfig, "train", "", [f"--{name}", value])


@pytest.mark.parametrize("name", rows(TRANSLATE))
def test_what_the_page_says_is_what_translate_does(name):
    _, fate, text = rows(TRANSLATE)[name]
    if fate == "accepted":
        assert name in TranslateConfig.__dataclass_fields__
        return
    with pytest.raises(UserError) as problem:
        parse(TranslateConfig, "translate", "", [*REQUIRED, f"--{name}", "1"])
    assert str(problem.value) == f"--{name} is not an option here: {text.replace('`', '')}"


def test_refusals_of_translate_are_all_on_the_page():
    assert set(rows(TRANSLATE)) == {*TranslateConfig.REMOVED, "direction"}


def commands() -> list[str]:
    """Every command with options that a page prints, `checkpoint verify\\|list RUN` as one."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = []
    for path in pages:
        text = re.sub(r"\\\|[a-z]+|\\\n", "", path.read_text(encoding="utf-8"))
        found += re.findall(r"python -m fastcyclegan\.\w+ [^`\n]*[^`\n. ]", text)
    assert len(found) >= 40
    return sorted({line for line in found if "--help" not in line})


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_pages_parse(command):
    _, _, module, *words = shlex.split(command)
    module = module.removeprefix("fastcyclegan.")
    config = parse(CONFIGS[module], module, "", words)
    if module == "train":
        check(config)


def test_commands_that_profile_end_with_their_window_and_run_in_order():
    """Each with the name of a run of its own, so that none continues another's."""
    lines = [line for line in commands() if "--profile_steps" in line]
    configs = [parse(TrainConfig, "train", "", shlex.split(line)[3:]) for line in lines]
    named = [config for config in configs if config.name]
    assert len(named) >= 3 and len({config.name for config in named}) == len(named)
    for config in named:
        assert config.steps == profile_window(config.profile_steps)[1]
    text = page("profiling.md")
    assert "--force-overwrite=true --output" in text and "--force-overwrite --export" in text


def test_readme_links_both_pages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/options.md)" in readme and "(docs/from-jz.md)" in readme


def test_every_option_of_the_checkout_is_listed():
    """Of the code itself, so that an option of a newer version is noticed."""
    if not os.environ.get("FASTCYCLEGAN_PEER_JZ"):
        pytest.skip("FASTCYCLEGAN_PEER_JZ names no checkout of pytorch-CycleGAN-and-pix2pix")
    root, listed = (
        Path(os.environ["FASTCYCLEGAN_PEER_JZ"]),
        {name for s in SECTIONS for name in rows(s)},
    )
    # The template is there to be copied for a model of one's own.
    models = set(root.glob("models/*_model.py")) - {root / "models/template_model.py"}
    sources = [*root.glob("options/*.py"), *models]
    found = {
        n for path in sources for n in re.findall(r"add_argument\('--(\w+)'", path.read_text())
    }
    assert len(found) > 40 and found <= listed
