"""FID and KID: distances of two sets of images by the features of a network from a local file.

Nothing is downloaded, and no name of code is taken from anywhere: the file is a TorchScript
program, which is run, or the weights of an architecture that is known here, which are data.
torchmetrics, of the extra ``eval``, does the statistics.
"""

import hashlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.models.inception_v3 import InceptionV3
from fastcyclegan.models.jz import LARGEST_FILE, read_pth
from fastcyclegan.models.weights import tensors_from_bytes
from fastcyclegan.runs.evaluation import Projector, transport

# Classes by the name of their architecture.
BUILT = {"inception_v3": InceptionV3}
# The covariances of FID are squares of it, in fp64.
MOST_FEATURES = 8192
# Images of a subset of KID, as in its article.
KID_SUBSET, KID_SUBSETS = 1000, 100
_BATCH = 32


class Extractor:
    """A network that gives each image some features.

    Args:
        path: a TorchScript file; with ``architecture`` a ``.pth`` or safetensors file of weights.
        architecture: one of BUILT, or None.
        device: where it runs.

    Attributes:
        name: of the architecture, or TorchScript.
        sha256: of the file, in hexadecimal.

    A TorchScript module is called with uint8 (N, 3, H, W), and with ``return_features=True`` if it
    has that argument, as StyleGAN's Inception has; it gives (N, features).

    Raises:
        UserError: torchmetrics is not there, or the file is not what it should be.
    """

    def __init__(
        self, path: Path, architecture: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        _require_torchmetrics()
        self.path, self.device = Path(path), torch.device(device)
        self.name = architecture or "TorchScript"
        data = _bytes(self.path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._options: dict[str, Any] = {}
        if architecture:
            self._net = self._from_weights(data, BUILT[architecture])
        else:
            self._net = self._from_program(data)
        self._net.eval()

    def _from_weights(self, data: bytes, build: type[nn.Module]) -> nn.Module:
        try:
            if self.path.suffix.lower() == ".safetensors":
                tensors, _ = tensors_from_bytes(data)
            else:
                tensors = read_pth(self.path)
            return build(tensors).to(self.device)
        except ValueError as problem:
            raise UserError(f"{self.path} is no {self.name}: {problem}") from None

    def _from_program(self, data: bytes) -> nn.Module:
        try:
            with warnings.catch_warnings(action="ignore"):
                net = torch.jit.load(io.BytesIO(data), map_location=self.device)
            arguments = {argument.name for argument in net.forward.schema.arguments}
        except Exception as problem:
            known = " or ".join(BUILT)
            raise UserError(
                f"{printable(self.path)} is no TorchScript file ({_last_line(problem)}): weights "
                f"need --architecture {known}"
            ) from None
        if "return_features" in arguments:
            self._options = {"return_features": True}
        return net

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of uint8 (N, H, W, C) images, C 1 or 3: float64 (N, features) on the CPU.

        Raises:
            UserError: the file's network does not take such images, or gives something else.
        """
        if images.shape[3] == 4:
            raise UserError("features are of images without transparency: leave --features out")
        # what a program may draw must not be missing in a training
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            return torch.cat([self._batch(part) for part in images.split(_BATCH)])

    def _batch(self, images: Tensor) -> Tensor:
        given = images.expand(-1, -1, -1, 3).permute(0, 3, 1, 2).contiguous().to(self.device)
        try:
            found = self._net(given, **self._options)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # a program can raise anything
            raise UserError(
                f"{printable(self.path)} does not take uint8 images of {tuple(given.shape)}: "
                f"{_last_line(problem)}"
            ) from None
        if isinstance(found, Tensor) and found.ndim == 4 and found.shape[2:] == (1, 1):
            found = found.flatten(1)
        self._check(found, len(images))
        return found.double().cpu()

    def _check(self, found: Any, count: int) -> None:
        shown = printable(self.path)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise UserError(f"{shown} gives a {type(found).__name__}, no tensor of floating point")
        if found.ndim != 2 or len(found) != count or not 1 <= found.shape[1] <= MOST_FEATURES:
            raise UserError(
                f"{shown} gives {tuple(found.shape)} for {count} images: (N, features) is "
                f"needed, with at most {MOST_FEATURES} features"
            )
        if not found.isfinite().all():
            raise UserError(f"{shown} gives features that are not finite")


def feature_distances(fake: Tensor, real: Tensor) -> dict[str, float]:
    """``fid``, ``kid`` and ``kid_std`` of two sets of features, by torchmetrics in fp64.

    KID is the mean over KID_SUBSETS subsets, always the same ones, of KID_SUBSET images of each set
    or as many as the smaller set has; where both sets are such a subset it is computed once.

    Args:
        fake, real: float64 (N, features); N is at least 2, and may differ.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    least = min(len(fake), len(real))
    whole = len(fake) == len(real) <= KID_SUBSET
    kid_options = {"subsets": 1 if whole else KID_SUBSETS, "subset_size": min(least, KID_SUBSET)}
    given = _Given(fake.shape[1])
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would seed the GPUs' generators too
        torch.default_generator.manual_seed(0)
        fid = FrechetInceptionDistance(given)
        kid = KernelInceptionDistance(given, **kid_options)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(fake, real=False)
        mean, std = kid.compute()
        return {"fid": float(fid.compute()), "kid": float(mean), "kid_std": float(std)}


class Reference:
    """Real images that others are compared with, as sets; of both only what this takes is kept.

    Args:
        parts: uint8 (N, H, W, C) each, on the CPU.
        extractor: for FID and KID, or None.

    Raises:
        UserError: as of :class:`Extractor`; one image alone for an extractor.
    """

    def __init__(self, parts: Iterable[Tensor], extractor: Extractor | None = None) -> None:
        self.extractor = extractor
        self._projections, self._features = self._reduced(parts)

    def scores(self, parts: Iterable[Tensor]) -> dict[str, float]:
        """``swd``, with an extractor also ``fid``, ``kid``, ``kid_std``; ``parts`` of the fakes."""
        projections, features = self._reduced(parts)
        found = {"swd": transport(projections, self._projections)}
        if features is not None and self._features is not None:
            found |= feature_distances(features, self._features)
        return found

    def _reduced(self, parts: Iterable[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What the distances are computed from: projections, and features if there are any."""
        project, projections, features = Projector(), [], []
        for images in parts:
            projections.append(project(images))
            if self.extractor:
                features.append(self.extractor(images))
        if self.extractor and sum(map(len, features)) < 2:
            raise UserError("FID and KID compare sets: at least 2 images of each are needed")
        return torch.cat(projections), torch.cat(features) if features else None


class _Given(nn.Module):
    """Stands for the extractor, so that FID and KID share features that are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _require_torchmetrics() -> None:
    try:
        import torchmetrics.image  # noqa: F401
    except ImportError:
        raise UserError("--features needs torchmetrics: pip install -e '.[eval]'") from None


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{printable(path)} is larger than {LARGEST_FILE // 2**30} GiB")
        return path.read_bytes()
    except OSError as problem:
        raise UserError(
            f"--features {printable(path)} cannot be read ({problem.strerror})"
        ) from None


def _last_line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return printable((lines or [type(problem).__name__])[-1][:160])
