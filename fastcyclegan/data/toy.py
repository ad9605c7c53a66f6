"""A toy pair of domains with a known bijection: unpaired translation with a ground truth.

A scene (horizon, places and sizes of balls) is drawn at random and painted twice. Domain A shows
shaded red balls on a ploughed meadow under a blue sky, domain B the same scene at dusk with boldly
ringed balls on bare ground. Rings and furrows are anchored to what both domains show, so each
picture can be worked out from the other. Balls and ground of B lie on one line of colours, and its
rings are steps where the red shading is faint and smooth, so no map of single colours translates.

Light stays light and dark stays dark within each object. Where that did not hold (a dark centre
for the lightest spot of a red ball) translators first settled on rings of the wrong phase, and
took several times as many steps.

The scenes of different splits are disjoint (the training data are unpaired); each test image
comes with the picture of its scene in the other domain. Mirrored scenes are equally likely, so
random horizontal flips do not leave the domains.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcyclegan.data.images import write_image
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable, write_atomic

SPLITS = ("trainA", "trainB", "testA", "testB")
_TRUTH = {"testA": "truthB", "testB": "truthA"}
_MARKER = "toy.json"
# To be raised with every change of the pictures: folders of older ones are then refused.
_DESIGN = 1
_MIN_SIZE = 16

# Colours as (top, bottom), tones of B as fractions of the way from dark to light.
_SKY_A = ((96, 158, 230), (190, 222, 246))
_RIDGE_A = ((158, 204, 104), (62, 136, 52))
_FURROW_A = ((118, 166, 70), (28, 84, 34))
_SKY_B = ((226, 178, 150), (250, 220, 178))
_RIDGE_B = (0.66, 0.5)
_FURROW_B = (0.3, 0.14)
_DARK_B = (40, 16, 60)
_LIGHT_B = (252, 240, 206)
_FURROW_PERIOD = 0.15

# A ball of A from its lightest spot to its rim; a ball of B changes colour at _RING on that way.
_BALL_A = ((240, 84, 64), (168, 20, 32))
_RING = 0.55
_LIGHT_SHIFT = 0.15


@dataclass(frozen=True)
class _Scene:
    """Lengths are fractions of the picture's side, y points down, balls are (x, y, radius)."""

    horizon: float
    balls: tuple[tuple[float, float, float], ...]


def _draw_scene(seed: int, split: str, index: int) -> _Scene:
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    horizon = rng.uniform(0.16, 0.36)
    wanted = int(rng.integers(2, 5))
    balls: list[tuple[float, float, float]] = []
    for _ in range(40):
        radius = rng.uniform(0.13, 0.22)
        x = rng.uniform(radius, 1 - radius)
        y = rng.uniform(horizon + 0.08, 1.02 - radius)
        if all((x - u) ** 2 + (y - v) ** 2 > (radius + r + 0.02) ** 2 for u, v, r in balls):
            balls.append((x, y, radius))
        if len(balls) == wanted:
            break
    return _Scene(horizon, tuple(balls))


def _mix(first: object, second: object, weight: np.ndarray) -> np.ndarray:
    """``first`` where ``weight`` is 0, ``second`` where it is 1; they all broadcast."""
    return np.asarray(first) * (1 - weight) + np.asarray(second) * weight


def _ramp(x: np.ndarray) -> np.ndarray:
    """A soft step from 0 to 1 about 0, one unit wide."""
    return np.clip(x + 0.5, 0, 1)


def _backgrounds(horizon: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky and ploughed ground of both domains, float64 (size, size, 3) in [0, 255]."""
    y = (np.arange(size).reshape(-1, 1, 1) + 0.5) / size
    height = np.clip(y / horizon, 0, 1)
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    phase = (y - horizon) / _FURROW_PERIOD
    furrow = np.clip(1 - 4.8 * np.abs(phase - np.floor(phase) - 0.5), 0, 1)
    ground_a = _mix(_mix(*_RIDGE_A, depth), _mix(*_FURROW_A, depth), furrow)
    tone_b = _mix(_mix(*_RIDGE_B, depth), _mix(*_FURROW_B, depth), furrow)
    below = _ramp((y - horizon) * size)
    a = _mix(_mix(*_SKY_A, height), ground_a, below)
    b = _mix(_mix(*_SKY_B, height), _mix(_DARK_B, _LIGHT_B, tone_b), below)
    return np.repeat(a, size, axis=1), np.repeat(b, size, axis=1)


def _paint_ball(a: np.ndarray, b: np.ndarray, ball: tuple[float, float, float]) -> None:
    """Paint one ball into both pictures of its scene, in place."""
    ball_x, ball_y, radius = ball
    size = len(a)
    left, top = (max(int((centre - radius) * size) - 1, 0) for centre in (ball_x, ball_y))
    right, bottom = (int((centre + radius) * size) + 2 for centre in (ball_x, ball_y))
    window = slice(top, bottom), slice(left, right)
    y = (np.arange(size)[window[0]].reshape(-1, 1, 1) + 0.5) / size - ball_y
    x = (np.arange(size)[window[1]].reshape(1, -1, 1) + 0.5) / size - ball_x
    inside = _ramp((radius - np.sqrt(x**2 + y**2)) * size)
    t = np.sqrt(x**2 + (y + _LIGHT_SHIFT * radius) ** 2) / ((1 + _LIGHT_SHIFT) * radius)
    a[window] = _mix(a[window], _mix(*_BALL_A, np.minimum(t, 1)), inside)
    b[window] = _mix(b[window], _mix(_LIGHT_B, _DARK_B, _ramp((t - _RING) * 8)), inside)


def _render(scene: _Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The two pictures of a scene, uint8 (size, size, 3).

    Only arithmetic and square roots, which IEEE 754 rounds in one way: the same bytes everywhere.
    """
    a, b = _backgrounds(scene.horizon, size)
    for ball in scene.balls:
        _paint_ball(a, b, ball)
    return np.rint(a).astype(np.uint8), np.rint(b).astype(np.uint8)


def toy_pairs(size: int, n: int, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Both domains' pictures of the first ``n`` scenes of a split, for truths and baselines.

    ``split`` is one of ``SPLITS``. Returns (A, B), uint8 (n, size, size, 3) each. Scene i depends
    on seed, split and i alone. Raises UserError for impossible numbers.
    """
    _check(size, n, seed)
    A, B = np.empty((2, n, size, size, 3), dtype=np.uint8)
    for i in range(n):
        A[i], B[i] = _render(_draw_scene(seed, split, i), size)
    return A, B


def affine_baseline(A_train: np.ndarray, B_train: np.ndarray, A_test: np.ndarray) -> np.ndarray:
    """The best that one affine colour map (3 x 4, least squares) can do, given true pairs.

    Fitted on the pairs ``A_train[i]``, ``B_train[i]``; returns ``A_test`` mapped. All of them
    uint8 (n, H, W, 3).
    """
    source, target = _homogeneous(A_train), B_train.reshape(-1, 3).astype(np.float64)
    colour_map = np.linalg.solve(source.T @ source, source.T @ target)
    mapped = np.rint(_homogeneous(A_test) @ colour_map)
    return np.clip(mapped, 0, 255).astype(np.uint8).reshape(A_test.shape)


def _homogeneous(images: np.ndarray) -> np.ndarray:
    pixels = images.reshape(-1, 3).astype(np.float64)
    return np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, float64 (n,); uint8 (n, H, W, C) arguments.

    Infinite where an image equals its truth.
    """
    error = images.astype(np.float64) - truth.astype(np.float64)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / np.mean(error**2, axis=(1, 2, 3)))


def toy_baselines(size: int, n_test: int, seed: int, n_train: int = 200) -> dict[str, float]:
    """PSNR in dB against the truth of what needs no network, the mean over the test images.

    ``input_psnr_B``: testA untranslated, ``affine_psnr_B``: under the affine colour map that fits
    the training scenes of both sets best; ``..._A``: testB likewise, in the other direction.
    Arguments as those of ``make_toy``.
    """
    # The fit needs colours only, which small pictures show as well: 16 times faster at 256 pixels.
    fit_size = min(size, 64)
    train = [toy_pairs(fit_size, n_train, seed, split) for split in ("trainA", "trainB")]
    train_A, train_B = (np.concatenate(domain) for domain in zip(*train, strict=True))
    test_A, true_B = toy_pairs(size, n_test, seed, "testA")
    true_A, test_B = toy_pairs(size, n_test, seed, "testB")
    affine_B = affine_baseline(train_A, train_B, test_A)
    affine_A = affine_baseline(train_B, train_A, test_B)
    return {
        "input_psnr_B": float(psnr(test_A, true_B).mean()),
        "input_psnr_A": float(psnr(test_B, true_A).mean()),
        "affine_psnr_B": float(psnr(affine_B, true_B).mean()),
        "affine_psnr_A": float(psnr(affine_A, true_A).mean()),
    }


def make_toy(
    root: Path, *, size: int = 64, n_train: int = 200, n_test: int = 16, seed: int = 0
) -> Path:
    """Write the toy domains below ``root`` as PNG files of size x size pixels, return ``root``.

    Folders trainA, trainB, testA, testB, and truthB, truthA: truthB/0003.png is what
    testA/0003.png should become, truthA/0003.png what testB/0003.png should become. The bytes
    depend on the arguments alone. What an earlier call with the same arguments completed is used
    as it is, what it left unfinished is finished. Nothing is ever deleted.

    Raises:
        UserError: impossible numbers; ``root`` holds files that are not from here, or toy images
            made with other arguments; it cannot be written.
    """
    root = Path(root)
    _check(size, min(n_train, n_test), seed)
    made_with = {"design": _DESIGN, "size": size, "seed": seed}
    made_with |= {"n_train": n_train, "n_test": n_test}
    counts = {split: n_train if split.startswith("train") else n_test for split in SPLITS}
    try:
        if _is_complete(root, made_with, counts):
            return root
        # Before the first image: a folder left unfinished is known to be ours.
        write_atomic(root / _MARKER, json.dumps(made_with, indent=1).encode())
        for split, count in counts.items():
            _write_split(root, split, toy_pairs(size, count, seed, split))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write toy images to {printable(root)}: {reason}") from error
    return root


def _is_complete(root: Path, made_with: dict[str, int], counts: dict[str, int]) -> bool:
    """Whether all images are there; creates ``root``, and raises UserError if it is another's."""
    root.mkdir(parents=True, exist_ok=True)
    marker = root / _MARKER
    if not marker.is_file():
        if any(root.iterdir()):
            raise UserError(
                f"{printable(root)} holds other files: give the toy images a new folder"
            )
        return False
    try:
        found = json.loads(marker.read_bytes())
    except ValueError:
        found = None
    if found != made_with:
        raise UserError(
            f"{printable(root)} holds toy images made with other options: remove that folder"
        )
    folders = {**counts, **{_TRUTH[split]: counts[split] for split in _TRUTH}}
    return all(
        (root / folder / _name(i)).is_file()
        for folder, count in folders.items()
        for i in range(count)
    )


def _write_split(root: Path, split: str, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    shown, truth = pairs if split.endswith("A") else pairs[::-1]
    folders = {split: shown, _TRUTH[split]: truth} if split in _TRUTH else {split: shown}
    for folder, images in folders.items():
        (root / folder).mkdir(exist_ok=True)
        for i, image in enumerate(images):
            write_image(root / folder / _name(i), image)


def _name(index: int) -> str:
    return f"{index:04d}.png"


def _check(size: int, n: int, seed: int) -> None:
    if size < _MIN_SIZE:
        raise UserError(
            f"toy images of {size} pixels: {_MIN_SIZE} are the least that show anything"
        )
    if n < 1 or seed < 0:
        raise UserError(
            f"toy images: a number of {n} and seed {seed} (at least 1 and 0 are needed)"
        )
