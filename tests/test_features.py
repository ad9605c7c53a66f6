"""FID and KID by their formulas in fp64; extractors from local files."""

import hashlib
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastcyclegan.errors import UserError
from fastcyclegan.runs import features
from fastcyclegan.runs.evaluation import sliced_wasserstein
from fastcyclegan.runs.features import Extractor, Reference, feature_distances

MISSING = r"is no inception_v3: Conv2d_1a_3x3\.conv\.weight is missing"


class Tiny(torch.nn.Module):
    """Eight features, by fixed random weights."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = torch.nn.Conv2d(3, count, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x.float() / 255 - 0.5)).mean((2, 3))


class Squeezed(torch.nn.Module):
    """As StyleGAN's Inception: the features only on demand."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        flat = x.float().mean((2, 3), keepdim=True)
        return flat if return_features else flat[:, :1]


class Maps(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


class Counts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum((2, 3))


class NotFinite(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3)) / 0


class Both(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def script(path, module: torch.nn.Module):
    with warnings.catch_warnings(action="ignore"):  # deprecated, and what is exchanged
        torch.jit.script(module).save(str(path))
    return path


def images(n: int, seed: int, side: int = 16, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = n, side, side, channels
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) // (seed + 1)


def fid_formula(x: np.ndarray, y: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), by eigenvalues of symmetric ones."""
    mean = [f.mean(0) for f in (x, y)]
    cov = [np.cov(f, rowvar=False) for f in (x, y)]
    values, vectors = np.linalg.eigh(cov[0])
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ cov[1] @ root).clip(0)
    return float(((mean[0] - mean[1]) ** 2).sum() + np.trace(sum(cov)) - 2 * np.sqrt(inner).sum())


def mmd_formula(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, pair by pair."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n = len(x)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / n**2


def test_fid_and_kid_are_their_formulas(tmp_path):
    extract = Extractor(script(tmp_path / "tiny.pt", Tiny()))
    fake, real = images(40, 1), images(40, 0)
    reference = [Tiny()(x.permute(0, 3, 1, 2)).detach() for x in (fake, real)]
    found = [extract(x) for x in (fake, real)]
    for f, truth in zip(found, reference, strict=True):
        assert f.dtype == torch.float64 and f.shape == (40, 8)
        assert (f - truth).abs().max() < 1e-6  # the network runs in fp32
    scores = Reference(real.split(9), extract).scores(fake.split(13))
    x, y = (f.numpy() for f in found)
    assert scores["fid"] == pytest.approx(fid_formula(x, y), rel=1e-8)
    assert scores["kid"] == pytest.approx(mmd_formula(x, y), rel=1e-8)
    assert scores["kid_std"] == 0 and scores["fid"] > 0.001
    assert scores["swd"] == pytest.approx(sliced_wasserstein(fake, real), rel=1e-6)


def test_fid_of_other_numbers_of_images_and_subsets_of_kid(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(50, 4)) * 2 + 1
    tensors = [torch.from_numpy(f) for f in (x, y)]
    assert feature_distances(*tensors)["fid"] == pytest.approx(fid_formula(x, y), rel=1e-8)
    monkeypatch.setattr(features, "KID_SUBSET", 10)
    monkeypatch.setattr(features, "KID_SUBSETS", 7)
    state = torch.get_rng_state()
    found = feature_distances(*tensors)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == feature_distances(*tensors)
    torch.manual_seed(0)
    subsets = []
    for _ in range(7):
        picked = torch.randperm(50)[:10], torch.randperm(30)[:10]
        subsets.append(mmd_formula(y[picked[0].numpy()], x[picked[1].numpy()]))
    assert found["kid"] == pytest.approx(np.mean(subsets), rel=1e-8)
    assert found["kid_std"] == pytest.approx(np.std(subsets), rel=1e-8)


def test_kid_of_sets_of_two_sizes_below_a_subset(monkeypatch):
    """Of the larger one as many as the smaller one has are taken, others each time."""
    monkeypatch.setattr(features, "KID_SUBSETS", 5)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(20, 4)) + 1
    found = feature_distances(torch.from_numpy(x), torch.from_numpy(y))
    torch.manual_seed(0)
    picked = [(torch.randperm(20)[:8], torch.randperm(8)) for _ in range(5)]
    subsets = [mmd_formula(y[of_y.numpy()], x[of_x.numpy()]) for of_y, of_x in picked]
    assert found["kid"] == pytest.approx(np.mean(subsets), rel=1e-8)
    assert found["kid_std"] == pytest.approx(np.std(subsets), rel=1e-8) and found["kid_std"] > 0


def test_an_extractor_is_in_eval_mode(tmp_path):
    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(x.float().mean((2, 3)))

    x = images(5, 0)
    found = Extractor(script(tmp_path / "dropping.pt", Dropping().train()))(x)
    assert torch.equal(found, x.float().mean((1, 2)).double())


def test_what_an_extractor_is_called_with(tmp_path):
    path = script(tmp_path / "squeezed.pt", Squeezed())
    extract = Extractor(path)
    assert extract.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert extract.name == "TorchScript"
    x = images(3, 0)
    assert torch.equal(extract(x), x.float().mean((1, 2)).double())
    grey = images(3, 0, channels=1)
    assert torch.equal(extract(grey), extract(grey.expand(-1, -1, -1, 3)))
    with pytest.raises(UserError, match="without transparency"):
        extract(images(3, 0, channels=4))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Maps(), r"gives \(2, 3, 16, 16\) for 2 images: \(N, features\) is needed"),
        (Counts(), "gives a Tensor, no tensor of floating point"),
        (Both(), "gives a tuple, no tensor of floating point"),
        (NotFinite(), "gives features that are not finite"),
        (torch.nn.Conv2d(3, 8, 4), r"does not take uint8 images of \(2, 3, 16, 16\): "),
        (torch.nn.Linear(7, 2), r"does not take uint8 images of \(2, 3, 16, 16\): "),
    ],
)
def test_an_extractor_of_another_shape(tmp_path, module, words):
    extract = Extractor(script(tmp_path / "x.pt", module))
    with pytest.raises(UserError, match=words) as problem:
        extract(images(2, 0))
    assert "\n" not in str(problem.value) and "x.pt" in str(problem.value)


def test_too_many_features(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "MOST_FEATURES", 7)
    with pytest.raises(UserError, match="at most 7 features"):
        Extractor(script(tmp_path / "tiny.pt", Tiny()))(images(2, 0))


def test_a_file_is_a_program_only_where_that_is_said(tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(2)}, weights)
    with pytest.raises(
        UserError, match=r"is no TorchScript file .*need --architecture inception_v3"
    ):
        Extractor(weights)
    (tmp_path / "text").write_text("no network")
    with pytest.raises(UserError, match="is no TorchScript file"):
        Extractor(tmp_path / "text")
    with pytest.raises(UserError, match=r"is a program \(TorchScript\), not a file of weights"):
        Extractor(script(tmp_path / "tiny.pt", Tiny()), "inception_v3")
    with pytest.raises(UserError, match=MISSING):
        Extractor(weights, "inception_v3")
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=MISSING):
        Extractor(tmp_path / "a.safetensors", "inception_v3")
    with pytest.raises(UserError, match=r"gone.pt cannot be read \(No such file or directory\)"):
        Extractor(tmp_path / "gone.pt")


def test_sets_have_more_than_one_image(tmp_path):
    extract = Extractor(script(tmp_path / "tiny.pt", Tiny()))
    with pytest.raises(UserError, match="at least 2 images"):
        Reference([images(1, 0)], extract)
    with pytest.raises(UserError, match="at least 2 images"):
        Reference([images(1, 0)] * 2, extract).scores([images(1, 0)])


def test_without_torchmetrics(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(UserError, match=r"needs torchmetrics: pip install -e '\.\[eval\]'"):
        Extractor(script(tmp_path / "tiny.pt", Tiny()))
