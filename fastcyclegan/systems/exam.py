"""What the networks of a system are scored on during a training, always the same."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.held_out import load_held_out
from fastcyclegan.data.images import to_uint8
from fastcyclegan.errors import UserError
from fastcyclegan.models import Network
from fastcyclegan.models.sampling import fixed_noise, generate
from fastcyclegan.runs.evaluation import pair_scores, translated
from fastcyclegan.runs.features import Extractor, Reference
from fastcyclegan.scores import OF_PAIRS


class Exam:
    """Images that networks are scored beside.

    Attributes:
        metric: the score that says which networks are best.
        digest: SHA-256 of what is scored beside, in hexadecimal: scores of two exams that differ in
            it cannot be compared.
    """

    metric: str
    digest: str

    def scores(self, networks: Mapping[str, Network]) -> dict[str, float]:
        """The scores of ``networks`` now, by name, ``_A`` or ``_B`` behind it for a domain's."""
        raise NotImplementedError


class Translations(Exam):
    """Both directions of a CycleGAN, on the test images of a folder. Raises UserError."""

    def __init__(self, config: TrainConfig, root: Path | str | None, device: torch.device) -> None:
        held, extractor = load_held_out(config, root), _extractor(config, device)
        self._pixels, self._device = config.pixel_range, device
        references = Reference([held.test_A], extractor), Reference([held.test_B], extractor)
        # by domain: who makes it, of what, beside which images and which truth
        self._parts = {
            "B": ("G_A", held.test_A, references[1], held.truth_B),
            "A": ("G_B", held.test_B, references[0], held.truth_A),
        }
        truths = [truth for *_, truth in self._parts.values() if truth is not None]
        self.metric = config.eval_metric or ("psnr" if truths else "swd")
        if self.metric in OF_PAIRS and not truths:
            raise UserError(
                f"--eval_metric {self.metric} needs the truth of the test images, in truthA or "
                "truthB of --dataroot"
            )
        self.digest = _digest(extractor, held.test_A, held.test_B, *truths)

    def scores(self, networks: Mapping[str, Network]) -> dict[str, float]:
        """See :class:`Exam`."""
        found = {}
        for domain, (name, source, reference, truth) in self._parts.items():
            fake = translated(networks[name], source, self._device, self._pixels)
            scores = reference.scores([fake])
            if truth is not None:
                scores |= pair_scores(fake, truth)
            found |= {f"{score}_{domain}": value for score, value in scores.items()}
        return found


class Samples(Exam):
    """Images of a DCGAN from fixed noise, beside real ones. Raises UserError.

    Args:
        config: the options.
        real: uint8 (N, H, W, C).
        device: where an extractor runs.
    """

    def __init__(self, config: TrainConfig, real: torch.Tensor, device: torch.device) -> None:
        self.metric, self._pixels = config.eval_metric or "swd", config.pixel_range
        extractor = _extractor(config, device)
        self._reference = Reference([real], extractor)
        self._noise = fixed_noise(config.seed, len(real), config.nz)
        self.digest = _digest(extractor, real)

    def scores(self, networks: Mapping[str, Network]) -> dict[str, float]:
        """See :class:`Exam`; of the average of the generator where there is one."""
        fake = generate(networks.get("G_ema", networks["G"]), self._noise)
        return self._reference.scores([to_uint8(fake, self._pixels)])


def _extractor(config: TrainConfig, device: torch.device) -> Extractor | None:
    if config.eval_features is None:
        return None
    return Extractor(Path(config.eval_features), config.eval_architecture, device)


def _digest(extractor: Extractor | None, *images: torch.Tensor) -> str:
    sha = hashlib.sha256((extractor.sha256 if extractor else "").encode())
    for some in images:
        sha.update(str(tuple(some.shape)).encode())
        sha.update(some.contiguous().numpy().data)
    return sha.hexdigest()
