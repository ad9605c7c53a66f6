"""Reading checkpoints: what is damaged is passed over; what may be sound is never lost."""

import json
import os

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.runs import sealed
from fastcyclegan.runs.best import Best, read_best, survey_best
from fastcyclegan.runs.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    survey,
    take_snapshot,
    write_checkpoint,
)
from fastcyclegan.runs.folder import RunFolder, open_run
from test_checkpoint import networks, save, steps
from test_checkpoint_command import call, tree
from tiny_runs import run_on_data


@pytest.fixture
def run(tmp_path):
    return open_run(tmp_path, "x", "digest")


@pytest.fixture
def unreadable(monkeypatch):
    """A function that lets reading the file ``path`` fail."""

    def install(path, code=5):
        read = type(path).read_bytes

        def failing(self):
            if self == path:
                raise OSError(code, os.strerror(code), str(self))
            return read(self)

        monkeypatch.setattr(type(path), "read_bytes", failing)

    return install


def rewrite(path, change):
    """Apply ``change`` to the body of a state.json, with a checksum that fits."""
    body = json.loads(path.read_bytes())["body"]
    body = change(body) or body
    path.write_text(json.dumps({"crc32": sealed._crc(body), "body": body}))


def newer(body):
    body["schema"] = 2


@pytest.mark.parametrize("name", ["state.json", "G_A.safetensors"])
@pytest.mark.parametrize("code", [5, 24, 116])  # EIO, EMFILE, ESTALE
def test_one_that_cannot_be_read_is_not_passed_over(run, unreadable, name, code):
    save(run, 1)
    path = save(run, 2)
    unreadable(path / name, code)
    with pytest.raises(UserError) as error:
        latest_checkpoint(run, lambda *damaged: pytest.fail("passed over"))
    text = str(error.value)
    assert f"{path / name} cannot be read ({os.strerror(code)}); move {path} away" in text


def test_nor_is_one_of_a_newer_version(run):
    save(run, 1)
    path = save(run, 2)
    rewrite(path / "state.json", newer)
    with pytest.raises(UserError, match="has schema 2, this version reads 1; move"):
        latest_checkpoint(run, lambda *damaged: pytest.fail("passed over"))


def test_a_folder_of_checkpoints_that_cannot_be_read_is_one_line(run, monkeypatch):
    save(run, 1)

    def failing(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(type(run.ckpt), "iterdir", failing)
    with pytest.raises(UserError, match=r"ckpt cannot be read \(Input/output error\)"):
        latest_checkpoint(run)


@pytest.mark.parametrize("why", ["unreadable", "newer"])
def test_a_save_leaves_what_may_be_sound(run, unreadable, why):
    """Among the old ones, where it may be a milestone, and among those of later steps."""
    for step in (1, 2, 9):
        write_checkpoint(run, take_snapshot(step, networks(step), {}, {}, step == 1), keep=9)
    for step in (1, 9):
        path = run.ckpt / f"step-{step:08d}/state.json"
        if why == "newer":
            rewrite(path, newer)
        else:
            unreadable(path)
    save(run, 3, keep=1)
    assert steps(run) == ["step-00000001", "step-00000003", "step-00000009"]


def test_the_command_shows_and_keeps_it(run, unreadable, capsys):
    for step in (1, 2, 3):
        save(run, step)
    rewrite(run.ckpt / "step-00000001/state.json", newer)
    unreadable(run.ckpt / "step-00000002/G_A.safetensors")
    assert call("verify", str(run.root)) == 2
    out, err = capsys.readouterr()
    assert out.count("NOT VERIFIED: ") == 2 and "DAMAGED" not in out
    assert err.startswith("error: 2 of 3 checkpoints") and "or cannot be read" in err
    assert call("list", str(run.root)) == 0
    assert call("prune", str(run.root), "--keep", "1") == 0
    assert steps(run) == [f"step-0000000{step}" for step in (1, 2, 3)]


def test_training_stops_at_it_with_one_line_and_code_2(here, unreadable, capsys):
    words = ["--name", "mine", "--save_every_steps", "2", "--steps"]
    assert run_on_data(*words, "4") == 0
    capsys.readouterr()
    root = here / "checkpoints/mine"
    unreadable((root / "ckpt/step-00000004/D_A.safetensors").relative_to(here))
    before = tree(root)
    assert run_on_data(*words, "6") == 2
    err = capsys.readouterr().err
    assert "D_A.safetensors cannot be read (Input/output error); move" in err
    assert err.count("\n") == 1 and tree(root) == before


HOSTILE = {
    "no files": lambda body: body.pop("files") and None,
    "files of a list": lambda body: body.update(files=[]),
    "a file of null": lambda body: body["files"].update({"G_A.safetensors": None}),
    "no state": lambda body: body.pop("state") and None,
    "state of a number": lambda body: body.update(state=3),
    "no step": lambda body: body.pop("step") and None,
    "another step": lambda body: body.update(step=1),
    "a step of true": lambda body: body.update(step=True),
    "a list": lambda body: [body],
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_state_that_is_none_is_damage_though_its_checksum_fits(run, change):
    save(run, 1)
    path = save(run, 2)
    rewrite(path / "state.json", HOSTILE[change])
    said = []
    assert latest_checkpoint(run, lambda *damaged: said.append(damaged))[0] == 1
    assert said[0][0] == path and "is damaged" in said[0][1]
    with pytest.raises(UserError, match=r"is damaged"):
        load_checkpoint(path)
    assert survey(run)[1].damage and not survey(run)[1].unknown


@pytest.mark.parametrize("where", ["body", "state"])
def test_a_state_that_is_nested_without_end_is_damage(run, where):
    save(run, 1)
    path = save(run, 2) / "state.json"
    nest = "[" * 100_000 + "]" * 100_000
    body = (
        nest if where == "body" else f'{{"schema": 1, "step": 2, "files": {{}}, "state": {nest}}}'
    )
    path.write_text(f'{{"crc32": 0, "body": {body}}}')
    assert latest_checkpoint(run)[0] == 1
    save(run, 3, keep=1)
    assert steps(run) == ["step-00000003"]


def test_what_a_state_lacks_is_one_line_when_training_goes_on(here, capsys):
    words = ["--name", "mine", "--steps"]
    assert run_on_data(*words, "2") == 0
    path = here / "checkpoints/mine/ckpt/step-00000002/state.json"
    for state in ({}, {"summed": 0, "skips": []}, {"summed": 0, "skips": None}):
        rewrite(path, lambda body, state=state: body.update(state=state))
        capsys.readouterr()
        assert run_on_data(*words, "4") == 2
        err = capsys.readouterr().err
        assert "does not fit these options" in err and err.count("\n") == 1


@pytest.fixture
def two_runs(tmp_path):
    mine, other = (open_run(tmp_path, name, name) for name in ("mine", "other"))
    save(mine, 5)
    save(other, 100)
    return mine, other


@pytest.mark.parametrize("what", ["a checkpoint", "ckpt"])
def test_prune_does_not_follow_a_link_to_another_run(two_runs, what, capsys):
    mine, other = two_runs
    before = tree(other.root)
    link = mine.ckpt / "step-00000100"
    if what == "ckpt":
        mine.ckpt.rename(mine.root / "away")
        link = mine.ckpt
        link.symlink_to("../other/ckpt")
        save(other, 101)
        before = tree(other.root)
    else:
        link.symlink_to("../../other/ckpt/step-00000100")
    assert call("prune", str(mine.root), "--keep", "1") == 2
    err = capsys.readouterr().err
    assert f"{link} is a link, perhaps to another run: nothing is removed" in err
    assert tree(other.root) == before


def test_nor_does_a_save(two_runs):
    mine, other = two_runs
    (mine.ckpt / "step-00000001").symlink_to("../../other/ckpt/step-00000100")
    before = tree(other.root)
    for step in (6, 7):
        save(mine, step, keep=1)
    assert steps(mine) == ["step-00000001", "step-00000007"] and tree(other.root) == before


def test_a_run_with_a_link_among_its_checkpoints_is_not_continued(two_runs, tmp_path):
    mine, _ = two_runs
    (mine.ckpt / "step-00000100").symlink_to("../../other/ckpt/step-00000100")
    with pytest.raises(UserError, match=r"ckpt/step-00000100 is a link"):
        open_run(tmp_path, "mine", "mine")


def test_best_networks_that_cannot_be_read_are_not_replaced(tmp_path, unreadable):
    folder, nets = RunFolder(tmp_path), networks(1)
    assert Best(folder, "swd", "x").offer(1, 0.5, {}, nets, "tanh")
    unreadable(folder.best / "D_A.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        Best(folder, "swd", "x")
    kept, standing = survey_best(folder)
    assert kept.unknown and standing == "" and read_best(folder, verify=False)["step"] == 1
    rewrite(folder.best / "state.json", lambda body: body["state"].update(score="low"))
    assert read_best(folder, verify=False) is None
