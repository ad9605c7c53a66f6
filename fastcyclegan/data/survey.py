"""What a training would be made of, by the headers of its image files alone."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple


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

    @property
    def images_per_epoch(self) -> int:
        """Those of the largest domain."""
        return max(self.images.values())

    def lines(self) -> Iterator[str]:
        """The survey for people."""
        counts = ", ".join(f"{count} in domain {name}" for name, count in self.images.items())
        unusable = f", {self.unusable} files cannot be used" if self.unusable else ""
        yield f"images: {counts}{unusable}, by their headers"
