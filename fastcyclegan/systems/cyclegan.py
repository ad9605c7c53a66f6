"""CycleGAN: two domains, four networks, eight losses."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.survey import Survey
from fastcyclegan.data.toy import make_toy
from fastcyclegan.data.training_set import (
    WATCHED_IMAGES,
    load_training_set,
    make_sampler,
    survey_domains,
    toy_root,
)
from fastcyclegan.device import Precision
from fastcyclegan.distributed import ALONE, Ranks
from fastcyclegan.errors import UserError
from fastcyclegan.runs.evaluation import preview_rows, psnr
from fastcyclegan.steps import cyclegan, sequential
from fastcyclegan.steps.assembly import check_image_sizes, make_networks, make_settings
from fastcyclegan.steps.initial import CYCLEGAN, adopt
from fastcyclegan.steps.losses import NAMES
from fastcyclegan.steps.model import Step
from fastcyclegan.systems.base import Shown, System
from fastcyclegan.systems.exam import Translations


class CycleGANSystem(System):
    """Unpaired translation; see :mod:`fastcyclegan.steps.cyclegan`, and ``sequential`` there."""

    LOSSES: ClassVar[tuple[str, ...]] = NAMES
    STEPS: ClassVar[Mapping[str, Step]] = cyclegan.STEPS

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        precision: Precision,
        say: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(config, device, precision, ranks)
        self.images = load_training_set(config, say)
        check_image_sizes(config, self.images.set_A, self.images.set_B)
        part = ranks.rank, ranks.world
        self.sampler = make_sampler(config, self.images, device, precision.dtype, part)
        size_A, size_B = self.sampler.sizes
        _check_sizes(config, size_A, size_B)
        shapes = (config.input_nc, *(size_A or (0, 0))), (config.output_nc, *(size_B or (0, 0)))
        networks = make_networks(config, device)
        one_by_one = config.updates == "sequential"
        model = sequential.SequentialCycleGAN if one_by_one else cyclegan.CycleGAN
        self.model = model(networks, make_settings(config, precision), *shapes, ranks)
        if config.eval_every and ranks.first:
            given = config.dataroot or config.dataroot_A
            self.exam = Translations(config, config.dataroot if given else toy_root(config), device)

    @property
    def step(self) -> Step:
        """The step function of ``--updates`` and ``--impl``."""
        steps = sequential.STEPS if self.config.updates == "sequential" else self.STEPS
        return steps[self.config.impl]

    @classmethod
    def adopt(cls, config: TrainConfig, explicit: frozenset[str]) -> tuple[TrainConfig, str]:
        """See :func:`fastcyclegan.steps.initial.adopt`."""
        return adopt(config, explicit, CYCLEGAN)

    @classmethod
    def survey(cls, config: TrainConfig) -> Survey:
        """Both domains."""
        return survey_domains(config)

    @classmethod
    def few(cls, config: TrainConfig, count: int, scratch: Path) -> TrainConfig:
        """Without a folder of images, toy images in ``scratch``."""
        if (config.dataroot, config.dataroot_A, config.dataroot_B) == (None, None, None):
            root = make_toy(scratch / "toy", size=config.crop_size, n_train=count, n_test=1)
            config = replace(config, dataroot=str(root))
        return super().few(config, count, scratch)

    @property
    def title(self) -> str:
        """The generator, and its width."""
        return f"{self.config.netG} ngf {self.config.ngf}"

    def image_names(self, step: int) -> dict[str, list[str]]:
        """By domain A and B."""
        drawn, sets = self.sampler.indices(step), (self.images.set_A, self.images.set_B)
        return {
            domain: [images.names[i] for i in index.tolist()]
            for domain, index, images in zip("AB", drawn, sets, strict=True)
        }

    @property
    def uncapturable(self) -> str | None:
        """A second derivative, or images whose sizes differ."""
        if self.config.gan_mode == "wgangp":
            return "--gan_mode wgangp differentiates the discriminators twice"
        return self._sizes_differ

    @property
    def uncompilable(self) -> str | None:
        """Images whose sizes differ."""
        return self._sizes_differ and f"{self._sizes_differ}, and each would be compiled anew"

    @property
    def _sizes_differ(self) -> str | None:
        if None in self.sampler.sizes:
            return f"the images have different sizes after --preprocess {self.config.preprocess}"
        return None

    def plateau_metric(self, losses: torch.Tensor) -> torch.Tensor:
        """Both cycle losses."""
        return losses[NAMES.index("cycle_A")] + losses[NAMES.index("cycle_B")]

    def compile_notes(self) -> Iterator[str]:
        """That wgangp leaves out the discriminators."""
        if self.config.gan_mode == "wgangp":
            yield (
                "--gan_mode wgangp: the discriminators run uncompiled, on the reference path, as "
                "the gradient penalty differentiates them twice"
            )

    def show(self) -> Shown:
        """The watched images through both generators, and PSNR where the truth is known."""
        nets, watched = self.model.networks, self.images.watched
        real = watched.real_A.to(self.device), watched.real_B.to(self.device)
        rows = preview_rows(nets["G_A"], nets["G_B"], *real)
        scores, pixels = {}, self.config.pixel_range
        if watched.truth_A is not None and watched.truth_B is not None:
            scores = {
                "psnr_B": psnr(rows["fake_B"], watched.truth_B, pixels),
                "psnr_A": psnr(rows["fake_A"], watched.truth_A, pixels),
            } | watched.baselines
        return Shown({label: x[:WATCHED_IMAGES] for label, x in rows.items()}, scores)

    def comparison(self, scores: Mapping[str, Any]) -> Iterator[str]:
        """PSNR of both directions beside the input's own and the best colour map's."""
        for domain, arrow in (("B", "A -> B"), ("A", "B -> A")) if scores else ():
            yield (
                f"{arrow}: held-out PSNR {scores[f'psnr_{domain}']:.1f} dB; untranslated "
                f"{scores[f'input_psnr_{domain}']:.1f} dB, best affine colour map "
                f"{scores[f'affine_psnr_{domain}']:.1f} dB"
            )

    def advice(self, root: str) -> str:
        """The command that translates."""
        return (
            f"translate with: python -m fastcyclegan.translate --weights {root} --input IMAGES "
            "--output FOLDER"
        )


def _check_sizes(config: TrainConfig, *sizes: tuple[int, int] | None) -> None:
    """Raise UserError if the images' sizes, None where they differ, do not go with an option."""
    if config.gan_mode == "wgangp" and (None in sizes or len(set(sizes)) > 1):
        raise UserError(
            "--gan_mode wgangp mixes real and generated images, whose sizes differ after "
            f"--preprocess {config.preprocess}; use one that ends in crop"
        )
