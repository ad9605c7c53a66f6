"""What a training would be made of, by the headers of its image files alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fastcyclegan.config import TrainConfig
from fastcyclegan.data.decode import target_size


class Survey(NamedTuple):
    """The image files of every domain.

    Attributes:
        images: how many are usable by their headers, by domain.
        unusable: files that are not.
        decoded_bytes: of all usable images, decoded and brought to size.
    """

    images: Mapping[str, int]
    unusable: int
    decoded_bytes: int

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        sizes: Mapping[str, Sequence[tuple[int, int]]],
        channels: Sequence[int],
        unusable: int,
    ) -> "Survey":
        """Of the (height, width) of every usable file, by domain, and the domains' channels."""
        how = config.preprocess, config.load_size, config.crop_size
        decoded = sum(
            count * height * width
            for count, domain in zip(channels, sizes.values(), strict=True)
            for height, width in (target_size(*size, *how) for size in domain)
        )
        return cls({name: len(domain) for name, domain in sizes.items()}, unusable, decoded)

    @property
    def images_per_epoch(self) -> int:
        """Those of the largest domain."""
        return max(self.images.values())

    def lines(self) -> Iterator[str]:
        """The survey for people."""
        counts = ", ".join(f"{count} in domain {name}" for name, count in self.images.items())
        unusable = f", {self.unusable} files cannot be used" if self.unusable else ""
        yield f"images: {counts}{unusable}, by their headers"
