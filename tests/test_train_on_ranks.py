"""The train command in several processes: its files, its resumes, its line for bad input."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from fastcyclegan import recorder
from fastcyclegan.config import TrainConfig
from fastcyclegan.distributed import Group, Ranks
from fastcyclegan.errors import UserError
from fastcyclegan.judge import Judge
from fastcyclegan.preparation import prepare
from fastcyclegan.runs.metrics import MetricsLog, read_metrics
from fastcyclegan.runs.report.live import LiveReport
from fastcyclegan.runs.tracking import Tracking
from fastcyclegan.steps.cyclegan import STEPS
from fastcyclegan.systems.cyclegan import CycleGANSystem
from processes import Ended, ended, free_port, in_processes, train_on_ranks
from test_train_dcgan import TINY as TINY_DCGAN
from tiny_runs import TINY, final_state, make_images, run_on_data

Networks = dict[str, dict[str, torch.Tensor]]


def words(*more: str) -> list[str]:
    return [*TINY, "--dataroot", "data", "--batch_size", "2", *more]


def dcgan(*more: str) -> list[str]:
    return [*TINY_DCGAN, "--dataroot", "data/trainA", "--sync_bn", "--steps", "6", *more]


TOYS = [*TINY, "--batch_size", "2"]
BAD = {
    "not among two": (words("--batch_size", "3"), "--batch_size 3 cannot be divided among 2"),
    "an option": ({0: words(), 1: words("--lr", "0.1")}, "rank 1 has another --lr (0.1) than"),
    "toys": ({0: TOYS, 1: words()}, "rank 1 has another source of images (a folder) than rank 0"),
    "given weights": ({0: words(), 1: words("--init_from", "data")}, "rank 1 has another --init_"),
    "images": ({0: words(), 1: words("--dataroot", "other")}, "rank 1 has another set of images"),
    "dropout": (words("--dropout"), "--dropout is for one process"),
    "a typing error": (words("--lamda_A", "3"), "--lamda_A: unknown option"),
    "of one": ({0: words(), 1: words("--lamda_A", "3")}, "rank 1: --lamda_A: unknown option"),
    "no folder": ({0: words(), 1: words("--dataroot", "no")}, "rank 1: --dataroot no"),
    "a plan": (words("--dry_run"), "--dry_run is about one process"),
    "a name": (words("--name", "one", "--lr", "0.1"), "run checkpoints/one has another"),
}  # fmt: skip
GOOD = {
    "whole": words("--name", "whole", "--steps", "6"),
    # in the middle of an epoch, which has five images
    "begun": words("--name", "parts", "--steps", "3"),
    "continued": words("--name", "parts", "--steps", "6"),
    "begun alone": words("--name", "one", "--steps", "6"),
    "finished": words("--name", "one", "--steps", "6"),
    "begun for one": words("--name", "fewer", "--steps", "3"),
    "dcgan": dcgan("--name", "dcgan_two"),
}


def test_the_command_with_two_processes(here, capsys):
    """Its files, its resumes in both directions, and its one line for bad input."""
    make_images(here / "other/trainA", 5, seed=7)
    make_images(here / "other/trainB", 3, seed=8)
    alone = ("--batch_size", "2", "--name")
    assert run_on_data(*alone, "one", "--steps", "3") == 0
    assert run_on_data(*alone, "truth", "--steps", "6") == 0
    cases = [*GOOD.values(), *(case for case, _ in BAD.values())]
    ends = dict(zip([*GOOD, *BAD], train_on_ranks(2, here, cases), strict=True))
    for case in GOOD:
        assert [end.code for end in ends[case]] == [0, 0], (case, ends[case])
        assert ends[case][1].out == "" and ends[case][0].err == "", case
    assert "2 processes, each with 1 image of every batch of 2" in ends["whole"][0].out
    assert "continuing run checkpoints/one at step 3" in ends["begun alone"][0].out
    assert "is finished at step 6" in ends["finished"][0].out
    assert run_on_data(*alone, "fewer", "--steps", "6") == 0
    assert "continuing run checkpoints/fewer at step 3" in capsys.readouterr().out
    assert ended(dcgan("--name", "dcgan_one")).code == 0
    check_dcgan(here / "checkpoints")
    names = ("whole", "parts", "one", "fewer")
    runs = {name: final_state(here / "checkpoints" / name) for name in names}
    truth = final_state(here / "checkpoints/truth")
    check_files(here / "checkpoints", truth, runs)
    for case, (_, said) in BAD.items():
        assert [end.code for end in ends[case]] == [2, 2], (case, ends[case])
        first, second = (end.err for end in ends[case])
        assert first.startswith(f"error: {said}") and first.count("\n") == 1, (case, first)
        assert second == "" == ends[case][1].out, (case, second)
    assert sorted(p.name for p in (here / "checkpoints").iterdir()) == [
        "dcgan_one", "dcgan_two", "fewer", "one", "parts", "truth", "whole"
    ]  # fmt: skip


def check_files(place: Path, truth: tuple, runs: dict[str, tuple]) -> None:
    """Bit-equal for the same number of processes, close to those of one; metrics of the batch."""
    rows = {name: read_metrics(place / name / "metrics.jsonl") for name in (*runs, "truth")}
    numbers = {
        name: [{k: x for k, x in row.items() if k not in ("kind", "img_per_s")} for row in found]
        for name, found in rows.items()
    }
    assert numbers["whole"] == numbers["parts"] and len(numbers["truth"]) > 3
    for name in runs:
        for ours, theirs in zip(numbers[name], numbers["truth"], strict=True):
            # in fp32, of images of noise
            assert ours == pytest.approx(theirs, rel=3e-2), name
    for networks, others in zip(runs["whole"][:2], runs["parts"][:2], strict=True):
        torch.testing.assert_close(networks, others, rtol=0, atol=0)
    for name in runs:
        # they moved by ten times as much; where a gradient is almost 0 Adam moves either way
        assert distance(runs[name][0], truth[0]) < 4e-5, name
        assert runs[name][1].keys() == truth[1].keys()
        assert (place / name / "previews/step-00000004.png").is_file()


def distance(ours: Networks, theirs: Networks) -> float:
    """The mean difference of two weights."""
    pairs = [(x, theirs[net][key]) for net in ours for key, x in ours[net].items()]
    return torch.cat([(x - y).abs().flatten() for x, y in pairs]).mean().item()


def check_dcgan(place: Path) -> None:
    """Batch norms over all processes; losses as of one."""
    rows = [read_metrics(place / name / "metrics.jsonl") for name in ("dcgan_one", "dcgan_two")]
    losses = [[row["D"], row["G"]] for found in rows for row in found if row["kind"] == "train"]
    assert len(losses) == 6
    torch.testing.assert_close(*torch.tensor(losses).chunk(2), rtol=1e-3, atol=1e-3)


class Asked(Ranks):
    """Says how it is asked to do something."""

    def together(self, do: Callable[[], None]) -> None:
        raise UserError("together")

    def in_turn(self, do: Callable[[], None]) -> None:
        raise UserError("in turn")


@pytest.mark.parametrize(("dataroot", "how"), [(None, "in turn"), ("data", "together")])
def test_toy_images_are_made_by_one_process(dataroot, how):
    with pytest.raises(UserError, match=how):
        prepare(TrainConfig(dataroot=dataroot), torch.device("cpu"), print, Asked())


def gone_back(here: Path, port: int) -> Ended:
    """The command, with two steps that the second process alone finds not finite."""
    os.chdir(here)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    fused, calls = STEPS["fused"], []

    def step(model, real_A, *others):
        calls.append(1)
        spoilt = model.ranks.rank == 1 and len(calls) in (5, 6)
        return fused(model, real_A * torch.nan if spoilt else real_A, *others)

    STEPS["fused"] = step
    often = ("--save_every_steps", "4", "--max_skips", "2")
    return ended(words("--name", "back", "--steps", "9", *often))


def test_all_go_back_when_one_is_not_finite(here):
    first, second = in_processes(2, partial(gone_back, here, free_port()))
    assert [first.code, second.code] == [0, 0] and second.out == second.err == "", first
    assert "going on from the checkpoint of step 4 with other images" in first.out
    rows = read_metrics(here / "checkpoints/back/metrics.jsonl")
    [event] = [row for row in rows if row.get("event") == "went back"]
    assert (event["step"], event["reached"]) == (4, 6)
    weights, _, _ = final_state(here / "checkpoints/back")
    assert all(x.isfinite().all() for net in weights.values() for x in net.values())


# What writes or judges, by where it is looked up.
ONLY_FIRST = {
    "report": (LiveReport, "tick"),
    "tracker": (Tracking, "rewind"),
    "tracker's rows": (Tracking, "row"),
    "judge": (Judge, "scores"),
    "metrics": (MetricsLog, "write"),
    "preview": (CycleGANSystem, "show"),
    "checkpoint": (recorder, "write_checkpoint"),
}


def judged(here: Path, port: int) -> tuple[Ended, set[str]]:
    """The command with all that it can show, and what of that this process has done."""
    os.chdir(here)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = set()

    def noted(name: str, function: Callable) -> Callable:
        return lambda *given, **options: done.add(name) or function(*given, **options)

    for name, (place, function) in ONLY_FIRST.items():
        setattr(place, function, noted(name, getattr(place, function)))
    often = ("--eval_every", "2", "--track", "tensorboard")
    return ended(words("--name", "shown", "--steps", "4", *often)), done


def test_the_first_process_alone_judges_reports_and_tracks(here):
    for seed, domain in enumerate("AB"):
        make_images(here / f"data/test{domain}", 3, (32, 32), seed=10 + seed)
    (first, all_of_it), (second, nothing) = in_processes(2, partial(judged, here, free_port()))
    assert [first.code, second.code] == [0, 0], (first, second)
    assert all_of_it == set(ONLY_FIRST) and nothing == set()
    root = here / "checkpoints/shown"
    scores = [row for row in read_metrics(root / "metrics.jsonl") if "swd_B" in row]
    assert [row["step"] for row in scores] == [2, 4]
    assert (root / "report.html").is_file() and (root / "best").is_dir()
    assert len(list((root / "tensorboard").iterdir())) == 1


def unsaved(here: Path, port: int, stopped: bool) -> tuple[Ended, float]:
    """The command on a full disk, which the first process notices late; and when it ended."""
    os.chdir(here)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def full(*_: object) -> None:
        time.sleep(1)
        raise OSError(28, "No space left on device")

    recorder.write_checkpoint = full
    if stopped:
        Group.loudest = lambda ranks, signum: signal.SIGTERM
    return ended(words("--name", "full", "--steps", "2")), time.monotonic()


@pytest.mark.parametrize("stopped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_no_process_goes_before_the_first_has_saved(here, stopped):
    """As the going of one ends all under torchrun; a save that fails is everyone's code."""
    job = partial(unsaved, here, free_port(), stopped)
    (first, at), (second, other) = in_processes(2, job)
    assert [first.code, second.code] == [5, 5]
    assert "could not be saved" in first.err and second.err == ""
    assert abs(at - other) < 0.9
