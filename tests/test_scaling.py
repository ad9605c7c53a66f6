"""The figures of docs/scaling.md are those of the networks and of the formulas that stand there."""

import json
import re

import pytest
import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.models import DCGANDiscriminator, DCGANGenerator, Network, build
from fastcyclegan.steps.assembly import architectures
from house_rules import ROOT

PAGE = (ROOT / "docs/scaling.md").read_text()
WORLDS, LINKS = (1, 2, 4, 8, 16, 32, 64), (25, 100, 400)
# of the model: images of each domain per process, and a measured step with them, in seconds
EACH, STEP = 8, 59e-3


def bytes_of_a_fake(pixels: int) -> int:
    """In bf16."""
    return 3 * pixels * pixels * 2


FAKES = 2 * bytes_of_a_fake(256)


def gradients(*networks: Network) -> int:
    """Bytes in fp32."""
    return sum(4 * p.numel() for net in networks for _, p in net.live_parameters())


@pytest.fixture(scope="module")
def of_cyclegan() -> dict[str, int]:
    with torch.device("meta"):
        networks = {name: build(arch) for name, arch in architectures(TrainConfig()).items()}
    pairs = {"D": ("D_A", "D_B"), "G": ("G_A", "G_B")}
    return {k: gradients(*(networks[name] for name in names)) for k, names in pairs.items()}


def received(world: int, weights: int) -> tuple[float, int]:
    """Bytes through a link of one process in a step: of sums by a ring, and of fakes."""
    return 2 * (world - 1) / world * weights, FAKES * EACH * (world - 1)


def row(world: int, weights: int) -> str:
    sums, fakes = received(world, weights)
    cells = []
    for gigabits in LINKS:
        seconds = (sums + fakes) / (gigabits / 8 * 1e9)
        share = f"{100 * STEP / (STEP + seconds):.0f} %"
        cells.append(f"{1e3 * seconds:.1f} ms, {share}" if world > 1 else share)
    return f"| {world} | {sums / 1e6:.0f} | {fakes / 1e6:.0f} | " + " | ".join(cells) + " |"


def test_bytes_of_a_step(of_cyclegan):
    assert f"| gradients of D_A and D_B, fp32 | {of_cyclegan['D']:,} |" in PAGE
    assert f"| gradients of G_A and G_B, fp32 | {of_cyclegan['G']:,} |" in PAGE
    assert f"| {FAKES // 2:,} per image: {FAKES:,} b (N - 1) arrive |" in PAGE
    with torch.device("meta"):
        D, G = DCGANDiscriminator(), DCGANGenerator()
    assert f"a DCGAN sends {gradients(D):,} bytes of D and then {gradients(G):,} of G" in PAGE


def test_the_table_of_the_model(of_cyclegan):
    weights = sum(of_cyclegan.values())
    assert f"(2 (N - 1) / N * {weights:,} + {FAKES:,} b (N - 1)) / link" in PAGE
    table = re.findall(r"^\| \d.* %.*\|$", PAGE, re.MULTILINE)
    assert table == [row(world, weights) for world in WORLDS]
    first = next(n for n in range(2, 100) if received(n, weights)[1] >= received(n, weights)[0])
    told = f"From {first} processes on the fakes weigh more than the gradients"
    assert told in " ".join(PAGE.split())


def test_what_was_measured_is_what_is_recorded():
    [path] = re.findall(r"`(bench/results/\S+\.json)`", PAGE)
    recorded = json.loads((ROOT / path).read_text())
    rows = {row["name"]: row.get("extra_info") for row in recorded["benchmarks"]}
    one, two = (rows[f"bench_scale[{world}]"] for world in (1, 2))
    told = (
        f"{one['img_per_s']:.1f} img/s with one process, {two['img_per_s']:.1f} with two, an "
        f"efficiency of {100 * two['efficiency']:.0f} %; the host waited for messages in "
        f"{100 * two['waited']:.1f} % of a step"
    )
    assert told in " ".join(PAGE.split())
    assert f"({recorded['machine_info']['fastcyclegan']['cpu']}, gloo, torch" in PAGE
