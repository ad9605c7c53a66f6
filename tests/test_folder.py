"""The run folder: names, numbers, which run is continued, and what is refused."""

import json
import os
from pathlib import Path

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.runs.folder import RunFolder, open_run, valid_name


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["a", "0001", "horse2zebra_v1.2-x", "...", "a" * 64])
def test_valid_names_are_returned(name):
    assert valid_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "/x", "a b", "a\n", "ä", "a" * 65, "a\x00"]
)
def test_other_names_are_refused_before_anything_is_made(name, tmp_path):
    with pytest.raises(UserError, match="--name"):
        open_run(tmp_path / "c", name, "d")
    assert not (tmp_path / "c").exists()


def test_a_new_run_has_its_folders_and_config(tmp_path):
    run = open_run(tmp_path / "a" / "b", None, "digest", options={"lr": 0.1})
    assert run == RunFolder(tmp_path / "a" / "b" / "0001")
    assert run.previews.is_dir() and run.weights.is_dir() and run.ckpt.is_dir()
    config = json.loads((run.root / "config.json").read_text())
    assert (config["digest"], config["finished"]) == ("digest", False)
    assert config["options"] == {"lr": 0.1}
    assert run.preview(500) == run.root / "previews" / "step-00000500.png"


def test_without_a_name_the_newest_unfinished_run_of_the_digest_is_continued(tmp_path):
    first = open_run(tmp_path, None, "d")
    other = open_run(tmp_path, None, "e")
    assert (first.root.name, other.root.name) == ("0001", "0002")
    assert open_run(tmp_path, None, "d") == first
    second = open_run(tmp_path, None, "d", mode="none")
    assert second.root.name == "0003"
    assert open_run(tmp_path, None, "d") == second
    second.update_config(finished=True)
    assert second.finished and not first.finished
    assert open_run(tmp_path, None, "d") == first
    first.update_config(finished=True)
    assert open_run(tmp_path, None, "d").root.name == "0004"


def test_the_newest_run_is_found_by_time_among_names_and_numbers(tmp_path):
    open_run(tmp_path, None, "d")
    named = open_run(tmp_path, "a", "d")
    assert open_run(tmp_path, None, "d") == named


def test_updating_the_config_keeps_the_other_entries(tmp_path):
    run = open_run(tmp_path, None, "d")
    run.update_config(data_digest="x")
    run.update_config(finished=True)
    config = run.read_config()
    assert (config["digest"], config["data_digest"], config["finished"]) == ("d", "x", True)


def test_a_named_run_continues_and_a_finished_one_is_returned_as_finished(tmp_path):
    run = open_run(tmp_path, "x", "d")
    assert open_run(tmp_path, "x", "d") == run
    run.update_config(finished=True)
    assert open_run(tmp_path, "x", "d").finished


def test_a_named_run_of_another_digest_is_refused_naming_what_differs(tmp_path):
    open_run(tmp_path, "x", "d", options={"lr": 0.1, "ngf": 64, "betas": (0.5, 0.999)})
    with pytest.raises(UserError) as error:
        open_run(tmp_path, "x", "e", options={"lr": 0.2, "ngf": 64, "betas": (0.5, 0.999)})
    text = one_line(error)
    assert "lr: 0.1 there, 0.2 now" in text and "--name" in text
    assert "ngf" not in text and "betas" not in text


def test_resume_none_refuses_a_name_that_exists(tmp_path):
    open_run(tmp_path, "x", "d")
    with pytest.raises(UserError, match="exists"):
        open_run(tmp_path, "x", "d", mode="none")


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match="--resume"):
        open_run(tmp_path, None, "d", mode="always")


def test_damaged_configs_are_passed_over_without_a_name_and_named_with_one(tmp_path):
    run = open_run(tmp_path, None, "d")
    for text in ("{", "[]"):
        run.config.write_text(text)
        with pytest.raises(UserError, match=r"0001/config\.json"):
            open_run(tmp_path, "0001", "d")
    assert open_run(tmp_path, None, "d").root.name == "0002"


def test_a_folder_of_other_files_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "holiday.jpg").touch()
    with pytest.raises(UserError, match=r"no config\.json"):
        open_run(tmp_path, "x", "d")
    assert os.listdir(tmp_path / "x") == ["holiday.jpg"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "x").mkdir()
    assert open_run(tmp_path, "x", "d").read_config()["digest"] == "d"


def test_a_file_in_the_way_is_refused_by_its_name(tmp_path):
    (tmp_path / "file").touch()
    for arguments in (
        (tmp_path / "file", None),
        (tmp_path / "file" / "y", "n"),
        (tmp_path, "file"),
    ):
        with pytest.raises(UserError) as error:
            open_run(*arguments, "d")
        assert str(tmp_path / "file") in one_line(error)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    run = open_run(tmp_path, "x", "d")
    # Not by chmod: the superuser may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != run.ckpt)
    with pytest.raises(UserError) as error:
        open_run(tmp_path, "x", "d")
    assert "ckpt" in one_line(error) and "Permission denied" in one_line(error)


def test_numbers_go_on_after_the_largest_and_skip_what_others_took(tmp_path):
    (tmp_path / "0041").mkdir()
    (tmp_path / "12").mkdir()
    (tmp_path / "0042").touch()
    assert open_run(tmp_path, None, "d").root.name == "0043"


def test_a_number_that_another_process_takes_meanwhile_is_skipped(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def raced(path, *arguments, **keywords):
        if path == tmp_path / "0001" and not path.exists():
            mkdir(path)
        mkdir(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", raced)
    assert open_run(tmp_path, None, "d").root.name == "0002"


def test_quarantine_has_one_json_line_per_file(tmp_path):
    run = open_run(tmp_path, None, "d")
    run.write_quarantine([(tmp_path / "a\n\udcff.png", "truncated"), (tmp_path / "b", "empty")])
    rows = [json.loads(line) for line in run.quarantine.read_bytes().splitlines()]
    assert rows == [
        {"path": str(tmp_path / "a\n\udcff.png"), "reason": "truncated"},
        {"path": str(tmp_path / "b"), "reason": "empty"},
    ]


@pytest.mark.parametrize(
    "inside",
    [
        *("", "ckpt", "weights", "previews", "metrics.jsonl", ".lock"),
        *("best", "profile", "repro-step-00000003", "tensorboard"),
    ],
)
def test_a_run_that_is_a_link_or_holds_one_is_refused(tmp_path, inside):
    """Nothing is written through it; files that are replaced, not opened, cannot be followed."""
    run, elsewhere = open_run(tmp_path / "c", "x", "d"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = run.root / inside if inside else run.root
    if path.is_dir():
        path.rename(tmp_path / "moved")
    path.symlink_to(elsewhere if inside != "metrics.jsonl" else elsewhere / "new")
    if not inside:
        (elsewhere / "config.json").write_bytes((tmp_path / "moved/config.json").read_bytes())
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(UserError, match="is a link") as error:
        open_run(tmp_path / "c", "x", "d")
    assert str(path) in one_line(error)
    assert sorted(elsewhere.rglob("*")) == before
