"""DCGAN: one domain, two networks, and what they say of each other."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.images import from_uint8, to_uint8
from fastcyclegan.data.one_domain import COMPARED_IMAGES, load_one_domain, survey_one_domain
from fastcyclegan.data.sampler import ImageSampler
from fastcyclegan.data.survey import Survey
from fastcyclegan.device import Precision
from fastcyclegan.distributed import ALONE, Ranks
from fastcyclegan.models.sampling import fixed_noise, generate
from fastcyclegan.runs.evaluation import mean_distance, sliced_wasserstein
from fastcyclegan.steps.dcgan import DCGAN, NAMES, STEPS
from fastcyclegan.steps.dcgan_assembly import make_networks, make_settings
from fastcyclegan.steps.initial import DCGAN as PARTS
from fastcyclegan.steps.initial import adopt
from fastcyclegan.steps.model import Step
from fastcyclegan.systems.base import Shown, System
from fastcyclegan.systems.exam import Samples

ROWS, COLUMNS = 8, 8


class DCGANSystem(System):
    """Images from noise; see :mod:`fastcyclegan.steps.dcgan`."""

    LOSSES: ClassVar[tuple[str, ...]] = NAMES
    STEPS: ClassVar[Mapping[str, Step]] = STEPS

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        precision: Precision,
        say: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(config, device, precision, ranks)
        self.images = load_one_domain(config, say)
        self.sampler = ImageSampler(
            self.images.images,
            batch_size=config.batch_size,
            crop_size=config.crop_size,
            flip=not config.no_flip,
            serial=config.serial_batches,
            seed=config.seed,
            device=device,
            dtype=precision.dtype,
            pixel_range=config.pixel_range,
            data_on=config.data_on,
            part=(ranks.rank, ranks.world),
        )
        self.model = DCGAN(make_networks(config, device), make_settings(config, precision), ranks)
        if config.eval_every and ranks.first:
            self.exam = Samples(config, self.images.compared, device)
        self._compared = from_uint8(self.images.compared)
        self._real_distance = mean_distance(self._compared) if len(self._compared) > 1 else 0.0
        self._at_start = self.show().scores["swd"] if self.images.held_out else None

    @classmethod
    def adopt(cls, config: TrainConfig, explicit: frozenset[str]) -> tuple[TrainConfig, str]:
        """See :func:`fastcyclegan.steps.initial.adopt`."""
        config, told = adopt(config, explicit, PARTS)
        if "load_size" not in explicit:
            config = replace(config, load_size=config.crop_size)
        return config, told

    @classmethod
    def survey(cls, config: TrainConfig) -> Survey:
        """The only domain there is."""
        return survey_one_domain(config)

    def image_names(self, step: int) -> dict[str, list[str]]:
        """Of the only domain there is, which is called real."""
        (drawn,) = self.sampler.indices(step)
        return {"real": [self.images.images.names[i] for i in drawn.tolist()]}

    @property
    def title(self) -> str:
        """The kind, the size and the width."""
        size = self.config.crop_size
        return f"DCGAN {size}x{size} ngf {self.config.ngf}"

    def show(self) -> Shown:
        """Samples of fixed noise, how far they are from real images, and how varied they are.

        ``swd`` is the sliced Wasserstein distance, ``diversity`` the mean distance between samples
        over that between real images: near 0 where the generator has collapsed.
        """
        nets, nz, pixels = self.model.networks, self.config.nz, self.config.pixel_range
        z = fixed_noise(self.config.seed, COMPARED_IMAGES, nz)
        fake = generate(nets.get("G_ema", nets["G"]), z)
        rows = {"real": from_uint8(self.images.compared[:COLUMNS], pixel_range=pixels)}
        for row in range(ROWS):
            first = row * COLUMNS
            rows[f"fake {first + 1}-{first + COLUMNS}"] = fake[first : first + COLUMNS]
        # as they are written, in [-1, 1]
        fake = from_uint8(to_uint8(fake, pixels))
        scores = {"swd": sliced_wasserstein(fake[: len(self._compared)], self._compared)}
        if self._real_distance:
            scores["diversity"] = mean_distance(fake) / self._real_distance
        return Shown(rows, scores)

    def comparison(self, scores: Mapping[str, Any]) -> Iterator[str]:
        """What the training has changed, where there are held-out images."""
        if scores and self._at_start:
            yield (
                f"sliced Wasserstein distance to held-out images {scores['swd']:.3f}, at the start "
                f"{self._at_start:.3f}; distance between samples {scores['diversity']:.2f} of that "
                "between real images"
            )

    def advice(self, root: str) -> str:
        """The command that samples."""
        return f"sample with: python -m fastcyclegan.sample --weights {root} --output grid.png"
