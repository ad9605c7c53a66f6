import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data.toy import (
    SPLITS,
    affine_baseline,
    make_toy,
    psnr,
    toy_baselines,
    toy_pairs,
)
from fastcyclegan.errors import UserError

SMALL = {"size": 32, "n_train": 5, "n_test": 3, "seed": 4}
COUNTS = {"trainA": 5, "trainB": 5, "testA": 3, "testB": 3, "truthA": 3, "truthB": 3}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_folders_hold_the_pictures_and_their_true_counterparts(tmp_path):
    root = make_toy(tmp_path / "deep" / "toy", **SMALL)
    assert root == tmp_path / "deep" / "toy"
    names = {folder: sorted(p.name for p in (root / folder).iterdir()) for folder in COUNTS}
    assert names == {folder: [f"{i:04d}.png" for i in range(n)] for folder, n in COUNTS.items()}
    for split, domain in zip(SPLITS, (0, 1, 0, 1), strict=True):
        pairs = toy_pairs(32, COUNTS[split], 4, split)
        for i, image in enumerate(pairs[domain]):
            assert np.array_equal(read(root / split / f"{i:04d}.png"), image)
    for test, truth, domain in (("testA", "truthB", 1), ("testB", "truthA", 0)):
        for i, image in enumerate(toy_pairs(32, 3, 4, test)[domain]):
            assert np.array_equal(read(root / truth / f"{i:04d}.png"), image)


def test_bytes_depend_on_the_arguments_alone(tmp_path):
    first, again = tree(make_toy(tmp_path / "1", **SMALL)), tree(make_toy(tmp_path / "2", **SMALL))
    assert first == again
    other = tree(make_toy(tmp_path / "3", **SMALL | {"seed": 5}))
    assert first.keys() == other.keys()
    assert not any(first[name] == other[name] for name in first)


def test_pictures_are_those_of_this_design():
    """A change of the pictures must raise _DESIGN, else old folders would be taken for new ones."""
    pixels = b"".join(image.tobytes() for image in toy_pairs(32, 4, 0, "trainA"))
    assert hashlib.sha256(pixels).hexdigest()[:16] == "41d3a668c2473c50"


def test_scenes_do_not_depend_on_how_many_are_asked_for():
    for few, many in zip(toy_pairs(32, 2, 1, "testB"), toy_pairs(32, 6, 1, "testB"), strict=True):
        assert few.shape == (2, 32, 32, 3) and few.dtype == np.uint8
        assert np.array_equal(few, many[:2])


def test_scenes_of_all_splits_are_disjoint():
    seen = [image.tobytes() for split in SPLITS for image in toy_pairs(32, 40, 0, split)[0]]
    assert len(set(seen)) == len(seen) == 160


@pytest.mark.parametrize("domain", [0, 1])
def test_each_domain_alone_tells_the_scene(domain):
    """The bijection: scenes that look nearly alike in one domain do so in the other."""
    pairs = [images.astype(float).reshape(60, -1) for images in toy_pairs(32, 60, 2, "trainA")]
    distances = [np.abs(x[:, None] - x[None]).mean(-1) + 1e9 * np.eye(60) for x in pairs]
    nearest = distances[domain].argmin(1)
    there = distances[1 - domain][np.arange(60), nearest]
    typical = np.median(distances[1 - domain], axis=1)
    assert distances[domain].min() > 0.5
    assert np.mean(there < typical) > 0.95


def test_balls_and_ground_cannot_be_told_apart_by_a_colour_of_domain_B():
    A, B = (images.reshape(-1, 3).astype(float) for images in toy_pairs(64, 20, 0, "trainA"))
    ball = (A[:, 0] > A[:, 1] + 60) & (A[:, 0] > A[:, 2] + 60)
    ground = (A[:, 1] > A[:, 0] + 20) & (A[:, 1] > A[:, 2] + 20)
    assert 0.1 < ball.mean() < 0.4 < ground.mean()
    axis = np.array([212.0, 224.0, 146.0]) / np.linalg.norm([212.0, 224.0, 146.0])
    along = (B - np.array([40.0, 16.0, 60.0])) @ axis
    off = np.linalg.norm(B - np.array([40.0, 16.0, 60.0]) - along[:, None] * axis, axis=1)
    inside = ball | ground
    assert np.quantile(off[inside], 0.97) < 2
    low, high = np.quantile(along[ball], [0.1, 0.9])
    assert low < along[ground].min() + 40 and high > along[ground].max() - 20


def test_no_colour_map_can_reach_what_is_asked_of_a_translator():
    baselines = toy_baselines(64, 16, 0)
    assert min(baselines.values()) > 9
    assert max(baselines["input_psnr_A"], baselines["input_psnr_B"]) < 12
    assert max(baselines["affine_psnr_A"], baselines["affine_psnr_B"]) < 17.5


def test_baselines_are_of_the_test_images_and_the_right_direction():
    A, B = toy_pairs(32, 3, 4, "testB")
    baselines = toy_baselines(32, 3, 4, n_train=5)
    assert baselines["input_psnr_A"] == pytest.approx(psnr(B, A).mean())
    sets = [toy_pairs(32, 5, 4, split) for split in ("trainA", "trainB")]
    train = [np.concatenate(domain) for domain in zip(*sets, strict=True)]
    mapped = affine_baseline(train[1], train[0], B)
    assert baselines["affine_psnr_A"] == pytest.approx(psnr(mapped, A).mean())
    A, B = toy_pairs(32, 3, 4, "testA")
    assert baselines["input_psnr_B"] == pytest.approx(psnr(A, B).mean())
    mapped = affine_baseline(train[0], train[1], A)
    assert baselines["affine_psnr_B"] == pytest.approx(psnr(mapped, B).mean())


def test_affine_baseline_recovers_an_affine_map_and_clips():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
    target = 255 - source[..., [2, 0, 1]]
    assert np.array_equal(affine_baseline(source[:3], target[:3], source[3:]), target[3:])
    bright = affine_baseline(source[:3] // 2, source[:3], source[3:])
    assert np.abs(bright.astype(int) - np.minimum(source[3:].astype(int) * 2, 255)).max() <= 2


def test_psnr_of_known_errors():
    truth = np.full((3, 4, 5, 3), 100, dtype=np.uint8)
    images = truth.copy()
    images[0] += 51
    images[1, ..., 0] -= 10
    found = psnr(images, truth)
    wanted = [20 * np.log10(5), 10 * np.log10(255**2 / (100 / 3)), np.inf]
    assert found == pytest.approx(wanted)


def test_complete_folder_is_used_as_it_is(tmp_path):
    root = make_toy(tmp_path, **SMALL)
    (root / "trainA" / "0001.png").write_bytes(b"mine")
    (root / "notes.txt").write_text("mine too")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_toy(root, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_unfinished_folder_is_finished(tmp_path):
    root = make_toy(tmp_path / "toy", **SMALL)
    whole = tree(root)
    (root / "truthA" / "0002.png").unlink()
    assert tree(make_toy(root, **SMALL)) == whole


@pytest.mark.parametrize("change", [{"seed": 5}, {"size": 48}, {"n_train": 4}, {"n_test": 2}])
def test_folder_made_with_other_arguments_is_left_alone(tmp_path, change):
    before = tree(make_toy(tmp_path, **SMALL))
    with pytest.raises(UserError, match="other options"):
        make_toy(tmp_path, **SMALL | change)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("marker", [None, b"[]", b"{", b"\xff\xfe"])
def test_folder_of_other_files_is_left_alone(tmp_path, marker):
    (tmp_path / "holiday.jpg").write_bytes(b"photo")
    if marker is not None:
        (tmp_path / "toy.json").write_bytes(marker)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="holds"):
        make_toy(tmp_path, **SMALL)
    assert tree(tmp_path) == before


def test_marker_names_the_arguments(tmp_path):
    found = json.loads((make_toy(tmp_path, **SMALL) / "toy.json").read_text())
    assert found == SMALL | {"design": found["design"]}


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for root in (tmp_path / "file", tmp_path / "file" / "toy"):
        with pytest.raises(UserError, match="cannot write toy images to"):
            make_toy(root, **SMALL)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "change", [{"size": 15}, {"size": -64}, {"n_train": 0}, {"n_test": -1}, {"seed": -1}]
)
def test_impossible_numbers(tmp_path, change):
    with pytest.raises(UserError, match="toy images"):
        make_toy(tmp_path / "toy", **SMALL | change)
    assert not (tmp_path / "toy").exists()
