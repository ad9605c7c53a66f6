"""python -m bench.quality: who is trained, what is recorded, and what is said of it."""

import json
import threading
from pathlib import Path
from statistics import stdev

import pytest

from bench import quality, report
from bench.gpu_suite import quality_part
from bench.gpu_suite.cases import DONE, FAILED, Plan
from bench.gpu_suite.train_part import TINY
from bench.quality import QualityConfig, Training, chosen
from bench.quality_scores import FAST, REFERENCE, compare, lines, seeds_of_both, table, verdict
from bench.recorded import load
from fastcyclegan import command
from fastcyclegan.config import TrainConfig
from fastcyclegan.options import parse_explicit
from fastcyclegan.presets import PRESETS
from fastcyclegan.runs.metrics import MetricsLog
from fastcyclegan.train import check
from house_rules import ROOT

REFERENCE_B, REFERENCE_A = [20.0, 20.4, 20.8], [18.0, 19.0, 18.5]


def trainings(shift: float, wobble: float = 0.1) -> list[dict]:
    """Three seeds of both ways: fast is better by ``shift``, more or less by ``wobble``."""
    found = []
    for i, (b, a) in enumerate(zip(REFERENCE_B, REFERENCE_A, strict=True)):
        told = {"seed": i + 1, "steps": 700}
        other = shift + wobble * (i - 1)
        found.append({"way": REFERENCE, "psnr_B": b, "psnr_A": a} | told)
        found.append({"way": FAST, "psnr_B": b + other, "psnr_A": a + other} | told)
    return found


class Trainings:
    """In the place of real ones: their words, and a score that tells seed and way."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, ...]] = []
        self.threads: list[str] = []
        self.failing: set[str] = set()
        self.score: float | None = 20.0
        self.both: threading.Barrier | None = None

    def __call__(self, words, steps, folder, environment) -> Path:
        if self.both:
            self.both.wait(20)
        self.begun.append(tuple(words))
        self.threads.append(environment["OMP_NUM_THREADS"])
        if words[-1] in self.failing:
            raise RuntimeError("the training ended with exit code 5\na line\nerror: disk full")
        root = folder / "checkpoints/run"
        root.mkdir(parents=True)
        log = MetricsLog(root / "metrics.jsonl")
        log.write("eval", steps // 2, psnr_A=1.0, psnr_B=1.0)
        log.write("train", steps, G_A=1.0)
        score = self.score and self.score + int(words[-1]) + 0.5 * ("bf16" in words)
        log.write("eval", steps, psnr_A=score, psnr_B=score, input_psnr_B=11.0)
        return root


@pytest.fixture
def stub(monkeypatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(quality, "run_training", found)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return found


def main(out: Path, *words: str) -> int:
    return command.run(quality.main, ["--out", str(out), *words])


def test_what_is_recorded_is_not_trained_again(tmp_path, stub, capsys):
    assert main(tmp_path, "--steps", "8", "--seeds", "1") == 0
    assert "no verdict" in capsys.readouterr().out.splitlines()[-1]
    assert main(tmp_path, "--steps", "8", "--seeds", "2", "--only", FAST, "--seed", "2") == 0
    assert main(tmp_path, "--steps", "8", "--seeds", "2") == 0
    told = capsys.readouterr().out
    assert told.endswith("the difference lies within the seeds' spread in both directions\n")
    assert [(words[-1], "bf16" in words) for words in stub.begun] == [
        *(("1", False), ("1", True)),
        *(("2", True), ("2", False)),
    ]
    before = (tmp_path / "quality.json").read_bytes()
    assert main(tmp_path, "--steps", "8", "--seeds", "2") == 0 and len(stub.begun) == 4
    assert (tmp_path / "quality.json").read_bytes() == before
    found = json.loads(before)
    assert {"date", "commit", "torch", "cpu", "cores"} <= found["machine"].keys()
    last = found["cases"]["reference, seed 2"]["result"]
    assert last.pop("seconds") >= 0
    assert last == {
        **{"psnr_A": 22.0, "psnr_B": 22.0, "input_psnr_B": 11.0},
        **{"way": REFERENCE, "seed": 2, "steps": 8, "threads": 1},
    }


def test_a_training_that_fails_is_told_and_done_again(tmp_path, stub, capsys):
    stub.failing = {"1"}
    assert main(tmp_path, "--steps", "8", "--seeds", "2") == 1
    told = capsys.readouterr().out
    said = "failed: the training ended with exit code 5 (error: disk full)"
    assert told.count(f"seed 1: {said}\n") == 2 and "seed 2: A -> B 22.50 dB" in told
    states = [
        c["state"] for c in json.loads((tmp_path / "quality.json").read_text())["cases"].values()
    ]
    assert states == [FAILED, FAILED, DONE, DONE]
    stub.failing = set()
    assert main(tmp_path, "--steps", "8", "--seeds", "2") == 0
    assert [words[-1] for words in stub.begun] == [*"112211"]


def test_a_training_without_a_score(tmp_path, stub, capsys):
    stub.score = None
    assert main(tmp_path, "--steps", "8", "--seeds", "1", "--only", FAST) == 1
    assert "failed: the training came to no PSNR of step 8\n" in capsys.readouterr().out


def test_several_at_once_share_the_cores(tmp_path, stub, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    stub.both = threading.Barrier(2)
    assert main(tmp_path, "--steps", "8", "--seeds", "2", "--jobs", "2") == 0
    assert stub.threads == ["3"] * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "file"], "--out file: File exists; name another folder"),
        (["--out", "file/below"], "--out file/below: Not a directory; name another folder"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--seeds", "none"], "--seeds: invalid int value: 'none'"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--only", "slow"], "--only slow: not one of reference, fast"),
        (["--seed", "6"], "--seed 6: beyond --seeds 5; raise that"),
        (["--steps", "9"], "quality.json is of 8 steps; give another --out"),
        (["--out", "other"], "quality.json is not of this suite; give another folder"),
        (["--wrong"], "--wrong: unknown option"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, stub, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/quality.json").write_text("[]")
    assert main(Path("out"), "--steps", "8", "--seeds", "1") == 0
    capsys.readouterr()
    assert main(Path("out"), *words) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert len(stub.begun) == 2 and (tmp_path / "file").read_text() == "mine"


def test_the_words_of_both_ways_are_options_of_train(stub):
    """The reference is plain and in fp32; the fast path is all that the train command has."""
    for training in chosen(QualityConfig("out", seeds=1)):
        quality.train(training, 8, 1)
    reference, fast = (parse_explicit(TrainConfig, "train", "", w)[0] for w in stub.begun)
    for config in (reference, fast):
        check(config)
        assert (config.preset, config.seed, config.dataroot) == ("small", 1, None)
    assert (reference.impl, reference.precision, reference.compile) == ("reference", "fp32", False)
    assert (fast.impl, fast.precision, fast.compile) == ("fused", "bf16", True)
    assert (fast.compile_scope, fast.cuda_graph) == ("step", "auto")


def test_a_real_training(monkeypatch):
    """Its score is that of the train command's own last preview."""
    found = quality.train(Training(REFERENCE, 3), 2, 1, TINY)
    assert (found["way"], found["seed"], found["steps"]) == (REFERENCE, 3, 2)
    assert 5 < found["psnr_A"] < 16 and 5 < found["psnr_B"] < 16
    assert {"input_psnr_A", "affine_psnr_B"} < found.keys() and found["seconds"] > 1


def test_the_verdict_flips_where_the_difference_exceeds_the_spread():
    spread = stdev(REFERENCE_B)
    within, beyond = compare(trainings(spread - 0.001)), compare(trainings(-spread - 0.001))
    assert [x.within for x in within] == [True, True] and "NOT" not in verdict(within)
    assert not beyond[0].within and verdict(beyond).startswith("the difference does NOT lie")
    assert "A -> B by -0.40 dB, spread 0.40 dB" in verdict(beyond)
    assert within[0].difference == pytest.approx(spread - 0.001)
    assert within[0].error == pytest.approx(0.1 / 3**0.5)


def test_a_fast_path_that_is_all_over_the_place_is_no_excuse():
    """The smaller spread counts, whichever way has it."""
    (wild, _), (tame, _) = compare(trainings(0.5, 5.0)), compare(trainings(0.3, -0.39))
    assert wild.spread == pytest.approx(stdev(REFERENCE_B)) and not wild.within
    assert tame.spread == pytest.approx(0.01) and not tame.within


def test_only_seeds_of_both_ways_are_compared():
    found = [t for t in trainings(0.2) if (t["way"], t["seed"]) != (FAST, 2)]
    (one, _) = compare(found[::-1])
    assert one.scores[REFERENCE] == [20.0, 20.8] and one.scores[FAST] == [20.1, 21.1]
    assert compare(found[:3]) == [] and verdict([]).startswith("no verdict")


def test_what_is_printed():
    told = list(lines(trainings(0.2)[::-1]))
    assert told[0].split() == ["held-out", "PSNR,", "dB", "A", "->", "B", "B", "->", "A"]
    assert told[1].split() == ["seed", "1,", "reference", "fp32", "eager", "20.00", "18.00"]
    assert told[6].split()[-2:] == ["21.10", "18.80"] and len({map(len, told[:7])}) == 1
    assert told[7] == "A -> B: reference fp32 eager: 20.40, spread 0.40"
    assert told[9] == "A -> B: difference +0.20, standard error 0.06"
    assert told[-1].startswith("the difference lies within")


def test_readme_gets_the_table(tmp_path, stub):
    """From the command's own file; that of a GPU in place of the sentence that there is none."""
    folder = tmp_path / "results/cpu"
    assert main(folder, "--steps", "8", "--seeds", "2", "--commit", "a" * 40) == 0
    readme = tmp_path / "README.md"
    markers = "".join(f"<!-- bench {name} quality -->\n<!-- end -->\n" for name in ("cpu", "gpu"))
    readme.write_text(markers)
    words = ["--results", str(tmp_path / "results"), "--readme", str(readme), "--no_plots"]
    assert command.run(report.main, words) == 0
    text = readme.read_text()
    made = load(folder / "quality.json")
    assert table(made.trainings, made.title) in text.partition("<!-- end -->")[0]
    assert "| reference fp32 eager | 21.50, spread 0.71 | 21.50, spread 0.71 |" in text
    assert "| difference | +0.50, standard error 0.00 | +0.50, standard error 0.00 |" in text
    assert "2 seeds, 8 steps each: the difference lies" in text and "commit aaaaaaa" in text
    assert "+" not in text.partition("torch ")[2].partition(",")[0]
    assert "has not been measured yet" in text
    found = json.loads((folder / "quality.json").read_text())
    found["machine"]["gpu"] = "NVIDIA X1"
    (folder / "quality.json").write_text(json.dumps(found))
    assert command.run(report.main, words) == 0
    assert "not been measured" not in readme.read_text() and "NVIDIA X1" in readme.read_text()


def test_what_is_recorded_here():
    """Whole trainings, seed after seed in both ways."""
    found = load(ROOT / "bench/results/cpu-2-cores-avx512-bf16/quality.json").trainings
    seeds = seeds_of_both(found)
    assert seeds == list(range(1, len(seeds) + 1)) and len(seeds) >= 4
    assert {t["steps"] for t in found} == {PRESETS["small"]["steps"]}


def test_the_suite_has_the_same_trainings(tmp_path):
    """So that the command goes on with what the suite has recorded."""
    names = [case.name for case in quality_part.cases(Plan(tmp_path, 500))]
    assert names == [t.name for t in chosen(QualityConfig(""))] and len(names) == 10
    (rehearsed,) = quality_part.cases(Plan(tmp_path, 500, rehearse=True))
    assert rehearsed.name == "reference, seed 1"
