"""Which networks are kept as the best: ties, scores and weights not finite, other images."""

from dataclasses import replace
from math import inf, nan
from types import SimpleNamespace

import pytest
import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.held_out import load_held_out
from fastcyclegan.data.images import read_image
from fastcyclegan.judge import Judge
from fastcyclegan.models import DCGANGenerator, ResnetGenerator
from fastcyclegan.runs.best import Best, read_best
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.systems.exam import Samples, Translations
from tiny_runs import make_images


def network(value: float = 0.0) -> ResnetGenerator:
    net = ResnetGenerator(ngf=2, n_blocks=1)
    with torch.no_grad():
        next(net.parameters()).fill_(value)
    return net


@pytest.mark.parametrize(
    ("metric", "scores", "kept"),
    [
        ("swd", [nan, 0.5, 0.5, nan, 0.6, 0.4, inf, -inf], [2, 6, 8]),
        ("psnr", [nan, 20.0, 20.0, nan, 19.0, 21.0, -inf, inf, inf], [2, 6, 8]),
    ],
)
def test_only_a_better_score_replaces_what_is_kept(tmp_path, metric, scores, kept):
    folder, net = RunFolder(tmp_path), network()
    best = Best(folder, metric, "images")
    for step, score in enumerate(scores, 1):
        was_kept = best.offer(step, score, {}, {"G_A": net}, "tanh")
        assert was_kept == (step in kept)
        state = read_best(folder)
        assert (state and state["step"]) == max((k for k in kept if k <= step), default=None)
        assert (state is None) == (best.standing is None) == (not folder.best.exists())
        # as a run that is continued here
        best = Best(folder, metric, "images")


def test_the_mean_of_both_directions_decides_and_weights_must_be_finite(tmp_path):
    networks = {"G_A": network(), "D_B": network()}
    exam = SimpleNamespace(metric="swd", digest="images")
    system = SimpleNamespace(exam=exam, model=SimpleNamespace(networks=networks))
    judge = Judge(TrainConfig(eval_every=5), RunFolder(tmp_path), system)
    due = [done for done in range(1, 13) if judge.due(done, last=done == 12)]
    assert due == [5, 10, 12]
    assert "swd 0.5, kept in" in judge.keep(5, {"swd_A": 0.2, "swd_B": 0.8, "fid_A": 9.0})
    assert judge.keep(10, {"swd_A": 0.1, "swd_B": 1.0, "fid_A": 0.0}) is None
    networks["D_B"] = network(inf)
    assert judge.keep(11, {"swd_A": 0.0, "swd_B": 0.0}) is None
    networks["D_B"] = network()
    assert judge.keep(12, {"swd_A": 0.3, "swd_B": 0.6}) is not None
    assert judge.verdict().startswith("best networks: step 12, swd 0.45, in ")


CONFIG = TrainConfig(crop_size=16, load_size=16, eval_every=1, num_threads=1)


def exam(root, **options) -> Translations:
    return Translations(replace(CONFIG, **options), root, torch.device("cpu"))


@pytest.mark.parametrize("changed", ["testA", "testB", "truthA", "truthB"])
def test_scores_on_other_images_cannot_be_compared(tmp_path, changed):
    for seed, folder in enumerate(("testA", "testB", "truthA", "truthB")):
        make_images(tmp_path / folder, 2, (16, 16), seed=seed)
    before = exam(tmp_path).digest
    assert exam(tmp_path).digest == before
    make_images(tmp_path / "other", 1, (16, 16), seed=9)
    (tmp_path / "other/0.png").replace(tmp_path / changed / "1.png")
    assert exam(tmp_path).digest != before


def test_the_first_images_of_a_folder_are_judged(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcyclegan.data.held_out.MOST", 3)
    for seed, folder in enumerate(("testA", "testB")):
        make_images(tmp_path / folder, 4, (16, 16), seed=seed)
    whole = exam(tmp_path).digest
    (tmp_path / "testA/3.png").unlink()
    assert exam(tmp_path).digest == whole != exam(tmp_path, max_dataset_size=2).digest


def test_truth_is_that_of_the_same_name_however_folders_are_sorted(tmp_path):
    for seed, folder in enumerate(("testA", "testB", "truthA", "truthB")):
        make_images(tmp_path / folder, 2, (16, 16), seed=seed)
    # 0.b comes before 0 in testA and behind it in truthB
    for folder, suffix in (("testA", "png"), ("truthB", "PNG")):
        for old, new in (("0", "0"), ("1", "0.b")):
            (tmp_path / folder / f"{old}.png").replace(tmp_path / folder / f"{new}.{suffix}")
    held = load_held_out(CONFIG, tmp_path)
    for found, files in ((held.test_A, "testA/{}.png"), (held.truth_B, "truthB/{}.PNG")):
        for image, name in zip(found, ("0.b", "0"), strict=True):
            path = tmp_path / files.format(name)
            assert torch.equal(image, torch.from_numpy(read_image(path, 3)))


def test_of_a_dcgan_the_average_is_judged():
    torch.manual_seed(0)
    G, average = (DCGANGenerator(nz=5, ngf=4, size=16) for _ in range(2))
    real = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    samples = Samples(replace(CONFIG, model="dcgan", nz=5), real, torch.device("cpu"))
    alone = [samples.scores({"G": net}) for net in (G, average)]
    assert samples.scores({"G": G, "G_ema": average}) == alone[1] != alone[0]
    other = Samples(replace(CONFIG, model="dcgan", nz=5), 255 - real, torch.device("cpu"))
    assert other.digest != samples.digest


def test_domains_have_their_channels(tmp_path):
    for folder in ("testA", "testB", "truthA", "truthB"):
        make_images(tmp_path / folder, 1, (16, 16))
    held = load_held_out(replace(CONFIG, input_nc=1), tmp_path)
    channels = [x.shape[3] for x in (held.test_A, held.test_B, held.truth_A, held.truth_B)]
    assert channels == [1, 3, 1, 3]
