"""--eval_every: scores in the metrics, the best networks kept, and no trace in what is trained."""

import json

import pytest
import torch

from fastcyclegan import checkpoint as checkpoint_command
from fastcyclegan import command, train, translate
from fastcyclegan.data.images import from_uint8, to_uint8
from fastcyclegan.models.weights import load_generator, load_network
from fastcyclegan.runs import best, sealed
from fastcyclegan.runs.best import read_best
from fastcyclegan.runs.evaluation import pair_scores, sliced_wasserstein
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.runs.metrics import read_metrics
from fastcyclegan.steps.cyclegan import STEPS
from fastcyclegan.systems.exam import Translations
from test_evaluate import pixels
from test_features import Maps, Tiny, script
from test_resume import ALL, DECAY, outcome, same
from tiny_runs import make_images, run, run_on_data

NAMES = ("G_A", "G_B", "D_A", "D_B")
FID = ("--eval_features", "tiny.pt")


@pytest.fixture
def tested(here):
    """Two domains with test images of the size that is trained at; no truth."""
    for seed, domain in enumerate("AB"):
        make_images(here / f"data/test{domain}", 3, (32, 32), seed=10 + seed)
    script(here / "tiny.pt", Tiny())
    return here


def judged(root) -> list[dict]:
    """The rows of scores, without those of previews."""
    rows = read_metrics(root / "metrics.jsonl")
    return [row for row in rows if row["kind"] == "eval"]


def without_scores(found):
    """An outcome without its rows of scores."""
    *state, rows = found
    return *state, [row for row in rows if row["kind"] != "eval"]


def weights(folder) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_network(folder / f"{name}.safetensors")[0].state_dict() for name in NAMES}


def test_scores_are_those_of_the_networks_in_eval_mode(tested):
    """With batch norms and dropout, which count and draw in training mode."""
    words = ["--norm", "batch", "--dropout", "--steps", "4", "--eval_every", "4", *FID]
    assert run_on_data(*words, "--name", "mine") == 0
    root = tested / "checkpoints/mine"
    [row] = judged(root)
    names = [f"{score}_{d}" for d in "BA" for score in ("swd", "fid", "kid", "kid_std")]
    assert list(row) == ["schema", "kind", "step", *names] and row["step"] == 4
    for direction, source, target in (("AtoB", "A", "B"), ("BtoA", "B", "A")):
        net = load_generator(root, direction)
        with torch.no_grad():
            parts = from_uint8(pixels(tested / f"data/test{source}")).split(1)
            fake = torch.cat([to_uint8(net(part)) for part in parts])
        truth = sliced_wasserstein(fake, pixels(tested / f"data/test{target}"))
        assert row[f"swd_{target}"] == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("words", [DECAY, ALL])
def test_it_leaves_no_trace_in_the_training(tested, words):
    """ALL has running statistics, and dropout, which draws from torch's generator."""
    assert run_on_data(*words, "--name", "plain") == 0
    assert run_on_data(*words, "--name", "judged", "--eval_every", "1", *FID) == 0
    plain, found = (outcome(tested / "checkpoints" / name) for name in ("plain", "judged"))
    assert len(found[-1]) > len(plain[-1])
    assert same(without_scores(found), plain)


def test_an_extractor_that_draws_leaves_no_trace_either(tested):
    class Drawing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float().mean((2, 3)) + torch.rand(3)

    script(tested / "drawing.pt", Drawing())
    assert run_on_data(*ALL, "--name", "plain") == 0
    words = ["--eval_every", "2", "--eval_features", "drawing.pt"]
    assert run_on_data(*ALL, "--name", "judged", *words) == 0
    plain, found = (outcome(tested / "checkpoints" / name) for name in ("plain", "judged"))
    assert same(without_scores(found), plain)


def test_the_best_networks_are_kept(tested, capsys):
    words = ["--n_epochs", "2", "--n_epochs_decay", "0", "--save_every_steps", "1", "--keep", "99"]
    assert run_on_data(*words, "--name", "mine", "--eval_every", "2") == 0
    root = tested / "checkpoints/mine"
    scores = {row["step"]: (row["swd_A"] + row["swd_B"]) / 2 for row in judged(root)}
    assert list(scores) == [2, 4, 6, 8, 10] and len(set(scores.values())) == 5
    step = min(scores, key=scores.get)
    kept = read_best(RunFolder(root))
    assert (kept["step"], kept["metric"]) == (step, "swd")
    assert kept["score"] == pytest.approx(scores[step], rel=1e-12)
    assert kept["scores"]["swd_B"] == next(r for r in judged(root) if r["step"] == step)["swd_B"]
    assert same(weights(root / "best"), weights(root / f"ckpt/step-{step:08d}"))
    told = capsys.readouterr().out
    assert f"best networks: step {step}, swd {scores[step]:.4g}, in checkpoints/mine/best" in told
    assert load_network(root / "best/G_A.safetensors")[1]["step"] == step


def test_of_psnr_more_is_better_and_the_truth_is_looked_up_by_name(tested):
    for domain in "AB":
        make_images(tested / f"data/truth{domain}", 5, (32, 32), seed=20)
        for old, new in (("0", "x"), ("1", "0"), ("2", "1"), ("4", "2")):
            place = tested / f"data/truth{domain}"
            (place / f"{old}.png").rename(place / f"{new}.PNG")
    words = ["--n_epochs", "2", "--n_epochs_decay", "0", "--save_every_steps", "1", "--keep", "99"]
    assert run_on_data(*words, "--name", "mine", "--eval_every", "3") == 0
    root = tested / "checkpoints/mine"
    scores = {row["step"]: (row["psnr_A"] + row["psnr_B"]) / 2 for row in judged(root)}
    kept = read_best(RunFolder(root))
    assert (kept["step"], kept["metric"]) == (max(scores, key=scores.get), "psnr")
    net = load_generator(root / "ckpt/step-00000010", "BtoA")
    with torch.no_grad():
        fake = torch.cat(
            [to_uint8(net(x)) for x in from_uint8(pixels(tested / "data/testB")).split(1)]
        )
    made = tested / "data/truthA"
    truth = torch.stack([pixels(made)[sorted(p.name for p in made.iterdir()).index(f"{n}.PNG")]
                         for n in range(3)])  # fmt: skip
    found = judged(root)[-1]
    assert found["l1_A"] == pytest.approx(pair_scores(fake, truth)["l1"], rel=1e-4)


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_toy_images_have_their_truth(here, direction):
    words = ["--steps", "2", "--eval_every", "1", "--display_freq", "99", "--direction", direction]
    assert run(*words, "--name", "toy") == 0
    first, last = judged(here / "checkpoints/toy")
    assert [first["step"], last["step"]] == [1, 2]
    # of the second step there is a preview too, in the same row
    assert "affine_psnr_A" in last and "affine_psnr_A" not in first
    toy, letters = here / "datasets/toy-32px", dict(zip("AB", direction[::3], strict=True))
    for there, source, target in (("AtoB", "A", "B"), ("BtoA", "B", "A")):
        net = load_generator(here / "checkpoints/toy", there)
        truth = pixels(toy / f"truth{letters[target]}")
        with torch.no_grad():
            parts = from_uint8(pixels(toy / f"test{letters[source]}")).split(1)
            fake = torch.cat([to_uint8(net(part)) for part in parts])
        for score, value in pair_scores(fake, truth).items():
            assert last[f"{score}_{target}"] == pytest.approx(value, rel=1e-4)


def best_of(root):
    """Everything in the folder of the best networks."""
    return read_best(RunFolder(root)), weights(root / "best")


def test_the_best_survive_interruptions(tested, monkeypatch):
    """A killed run repeats steps that were scored already; what was best stays so."""
    words = [*DECAY, "--save_every_steps", "4", "--eval_every", "3", "--eval_metric", "kid", *FID]
    assert run_on_data(*words, "--name", "whole") == 0
    fused, killed_at = STEPS["fused"], [5, 7, 11, 14]

    def killed(model, real_A, real_B, number):
        if killed_at and int(number[0]) == killed_at[0]:
            killed_at.pop(0)
            raise KeyboardInterrupt
        return fused(model, real_A, real_B, number)

    monkeypatch.setitem(STEPS, "fused", killed)
    for _ in list(killed_at):
        assert run_on_data(*words, "--name", "parts") == 130
    assert run_on_data(*words, "--name", "parts") == 0
    whole, parts = (tested / "checkpoints" / name for name in ("whole", "parts"))
    assert same(outcome(whole), outcome(parts))
    assert same(best_of(whole), best_of(parts))


def claim(root, score):
    """Say that what is in best/ has had this score."""
    body = json.loads((root / "best/state.json").read_bytes())["body"]
    body["state"]["score"] = score
    crc32 = sealed._crc(body)
    (root / "best/state.json").write_text(json.dumps({"crc32": crc32, "body": body}))


def test_a_best_score_of_before_is_not_beaten_by_a_worse_one(tested):
    root, every = tested / "checkpoints/mine", ("--name", "mine", "--eval_every")
    assert run_on_data(*every, "2", "--steps", "2") == 0
    claim(root, 1e-6)
    assert run_on_data(*every, "1", "--steps", "4") == 0
    assert read_best(RunFolder(root))["step"] == 2
    # what was measured in another way counts for nothing
    assert run_on_data(*every, "2", "--steps", "6", *FID) == 0
    assert read_best(RunFolder(root))["step"] == 6
    claim(root, 1e-6)
    assert run_on_data(*every, "2", "--steps", "7", *FID) == 0
    assert read_best(RunFolder(root))["step"] == 6
    # nor does what is damaged
    networks = (root / "best/G_A.safetensors").read_bytes()
    (root / "best/G_A.safetensors").write_bytes(networks[:-4] + b"\0\0\0\1")
    assert run_on_data(*every, "2", "--steps", "8", *FID) == 0
    assert read_best(RunFolder(root))["step"] == 8


def test_commands_find_the_best(tested, capsys):
    assert run_on_data("--name", "mine", "--steps", "3", "--eval_every", "3", "--keep", "1") == 0
    root = tested / "checkpoints/mine"
    words = ["--weights", str(root / "best"), "--input", "data/testA", "--output", "out"]
    assert command.run(translate.main, words) == 0
    assert len(list((tested / "out").iterdir())) == 3
    capsys.readouterr()
    for action, said in (("list", ""), ("verify", "  sound")):
        assert command.run(checkpoint_command.main, [action, str(root)]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("best  ") and f"MiB{said}  step 3, swd " in last
    before = best_of(root)
    assert command.run(checkpoint_command.main, ["prune", str(root), "--keep", "1"]) == 0
    assert same(best_of(root), before)
    (root / "best/D_B.safetensors").write_bytes(b"")
    assert command.run(checkpoint_command.main, ["verify", str(root)]) == 2
    assert "best/D_B.safetensors is damaged" in capsys.readouterr().out


def test_what_cannot_be_written_is_told_and_the_best_of_before_stands(tested, monkeypatch, capsys):
    words = ["--name", "mine", "--eval_every", "1"]
    assert run_on_data(*words, "--steps", "1") == 0
    root = tested / "checkpoints/mine"
    before = best_of(root)
    score = iter((-1.0, -2.0))
    offer = best.Best.offer
    monkeypatch.setattr(
        best.Best, "offer", lambda self, step, _, *rest: offer(self, step, next(score), *rest)
    )

    def full(path, files):
        path.rename(path.with_name("best.old"))
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(best, "write_folder", full)
    assert run_on_data(*words, "--steps", "3") == 0
    said = capsys.readouterr().out
    for step in (2, 3):
        assert f"warning: step {step}: the best networks could not be kept: [Errno 28]" in said
    assert same(best_of(root), before) and not (root / "best.old").exists()
    assert [row["step"] for row in judged(root)] == [1, 2, 3]


def test_an_extractor_that_fails_does_not_end_the_training(tested, capsys):
    class Fickle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls in (3, 4):  # the first two are those of the real images
                raise ValueError("not today")
            return x.float().mean((2, 3))

    script(tested / "fickle.pt", Fickle())
    words = ["--steps", "4", "--eval_every", "1", "--eval_features", "fickle.pt"]
    assert run_on_data(*words, "--name", "mine") == 0
    assert [row["step"] for row in judged(tested / "checkpoints/mine")] == [3, 4]
    said = capsys.readouterr().out
    for step in (1, 2):
        assert f"warning: step {step}: not scored: fickle.pt does not take uint8 images" in said


def test_too_little_memory_to_judge_does_not_end_the_training(tested, monkeypatch, capsys):
    def none_left(self, networks):
        raise MemoryError

    monkeypatch.setattr(Translations, "scores", none_left)
    assert run_on_data("--steps", "2", "--eval_every", "2", "--name", "mine") == 0
    assert "warning: step 2: not scored: MemoryError" in capsys.readouterr().out
    assert (tested / "checkpoints/mine/ckpt/step-00000002").is_dir()


def test_a_dcgan_is_judged_by_its_average(here):
    words = "--model dcgan --device cpu --precision fp32 --crop_size 16 --ngf 4 --ndf 4 --nz 5"
    words += " --batch_size 2 --print_freq 2 --display_freq 99 --dataroot data/trainA"
    script(here / "tiny.pt", Tiny())

    def call(*more):
        return command.run(train.main, [*words.split(), *more])

    assert call("--name", "mine", "--steps", "6", "--ema", "0.5", "--eval_every", "2", *FID) == 0
    assert call("--name", "plain", "--steps", "6", "--ema", "0.5") == 0
    plain, found = (outcome(here / "checkpoints" / name) for name in ("plain", "mine"))
    assert same(without_scores(found), without_scores(plain))
    root = here / "checkpoints/mine"
    rows = judged(root)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all({"swd", "fid", "kid", "kid_std"} <= row.keys() for row in rows)
    assert "diversity" in rows[-1] and "diversity" not in rows[0]
    kept = read_best(RunFolder(root))
    assert kept["score"] == min(row["swd"] for row in rows)
    assert {path.stem for path in (root / "best").iterdir()} == {"G", "G_ema", "D", "state"}


def test_the_images_of_a_dcgan_have_no_truth(here, capsys):
    words = "--model dcgan --eval_every 2 --eval_metric psnr"
    assert command.run(train.main, words.split()) == 2
    assert "--eval_metric psnr: a DCGAN's images have no truth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--eval_metric swd", "--eval_metric needs --eval_every"),
        ("--eval_features tiny.pt", "--eval_features needs --eval_every"),
        ("--eval_every 2 --eval_architecture inception_v3", "needs --eval_features"),
        ("--eval_every 2 --eval_metric kid", "--eval_metric kid needs --eval_features"),
        ("--eval_every 2 --eval_metric ssim", "needs the truth of the test images"),
        ("--eval_every 2 --eval_features maps.pt", "(N, features) is needed"),
        ("--eval_every 2 --eval_features data/testA/0.png", "is no TorchScript file"),
        ("--eval_every 0", "--eval_every 0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tested, capsys, words, reason):
    script(tested / "maps.pt", Maps())
    assert run_on_data(*words.split()) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not (tested / "checkpoints").exists()


def test_without_test_images_it_is_refused(here, capsys):
    assert run_on_data("--eval_every", "2") == 2
    assert "--eval_every: --dataroot data has neither testA and testB" in capsys.readouterr().err
    apart = "--dataroot_A data/trainA --dataroot_B data/trainB --eval_every 2"
    assert run(*apart.split()) == 2
    assert "--eval_every needs --dataroot, with testA and testB" in capsys.readouterr().err
    for domain in "AB":
        make_images(here / f"data/test{domain}", 2)
    make_images(here / "data/truthA", 1)
    assert run_on_data("--eval_every", "2") == 2
    assert "data/truthA has no usable image called 1" in capsys.readouterr().err
    assert not (here / "checkpoints").exists()


def test_a_dry_run_does_not_judge(tested, capsys):
    assert run_on_data("--eval_every", "2", "--dry_run") == 0
    assert not (tested / "checkpoints").exists()
