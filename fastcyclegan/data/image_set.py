"""All decoded images of one domain in one flat uint8 buffer."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

_DIGEST_ROWS = 1 << 24


@dataclass
class ImageSet:
    """n images of one domain, one after the other, each row by row.

    Attributes:
        pixels: (P, C) uint8.
        offset: (n,) int64, the row of ``pixels`` where each image begins.
        height, width: (n,) int64, in pixels.
        names: names relative to the scanned folder, "/" between folders.
        quarantined: (path, reason) of the files that could not be used.
        notes: counts of what is worth knowing.
    """

    pixels: Tensor
    offset: Tensor
    height: Tensor
    width: Tensor
    names: list[str]
    quarantined: list[tuple[Path, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, images: Iterable[np.ndarray | Tensor]) -> Self:
        """Copies of ``images``, one after the other, which are called by their numbers.

        Args:
            images: each uint8 (H, W, C) with C = 1 (grey), 3 (RGB) or 4 (RGBA), the same for all;
                sizes may differ. What NumPy makes such an array of (a Pillow image) will do.

        Raises:
            ValueError: there is none, or one of them is something else.
        """
        arrays = [_as_tensor(image) for image in images]
        if not arrays:
            raise ValueError("there is no image")
        for number, x in enumerate(arrays):
            fits = x.dtype == torch.uint8 and x.ndim == 3 and x.numel() and x.shape[2] in (1, 3, 4)
            if not fits or x.shape[2] != arrays[0].shape[2]:
                raise ValueError(
                    f"image {number} is {x.dtype} {tuple(x.shape)}: all must be uint8 (H, W, C) "
                    "with the same C of 1, 3 or 4"
                )
        size = torch.tensor([x.shape[:2] for x in arrays])
        rows = size.prod(1)
        pixels = torch.cat([x.reshape(-1, x.shape[2]).cpu() for x in arrays])
        names = [str(number) for number in range(len(arrays))]
        return cls(pixels, rows.cumsum(0) - rows, *size.T.contiguous(), names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def channels(self) -> int:
        """1 (grey), 3 (RGB) or 4 (RGBA)."""
        return self.pixels.shape[1]

    @property
    def summary(self) -> str:
        """How many images there are and what is worth knowing of them, for people."""
        notes = self.notes | {"passed over": len(self.quarantined)}
        told = ", ".join(f"{count} {note}" for note, count in notes.items() if count)
        return f"{len(self)} images ({told})" if told else f"{len(self)} images"

    def image(self, index: int) -> Tensor:
        """Image number ``index`` as a (H, W, C) uint8 view. Waits for the device."""
        start, h, w = (int(t[index]) for t in (self.offset, self.height, self.width))
        return self.pixels[start : start + h * w].view(h, w, self.channels)

    def followed_by(self, other: "ImageSet") -> "ImageSet":
        """These images and then those of ``other``, whose quarantine holds this one's already."""
        return ImageSet(
            torch.cat([self.pixels, other.pixels]),
            torch.cat([self.offset, other.offset + len(self.pixels)]),
            torch.cat([self.height, other.height]),
            torch.cat([self.width, other.width]),
            self.names + other.names,
            other.quarantined,
            dict(Counter(self.notes) + Counter(other.notes)),
        )

    def to(self, device: str | torch.device) -> "ImageSet":
        """The same images on another device; itself if they are there already."""
        if self.pixels.device == torch.empty(0, device=device).device:
            return self
        tensors = ("pixels", "offset", "height", "width")
        moved = replace(self, **{name: getattr(self, name).to(device) for name in tensors})
        if "digest" in self.__dict__:
            moved.__dict__["digest"] = self.digest
        return moved

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over names, sizes and pixels; where the folder lies does not matter."""
        sha = hashlib.sha256(f"{len(self)} {self.channels}\n".encode())
        height, width = self.height.tolist(), self.width.tolist()
        for name, h, w in zip(self.names, height, width, strict=True):
            # A name may hold any character: its length first, so that no two lists look the same.
            data = name.encode("utf-8", "surrogatepass")
            sha.update(b"%d %d %d " % (len(data), h, w) + data)
        for rows in self.pixels.split(_DIGEST_ROWS):
            sha.update(rows.cpu().contiguous().numpy().data)
        return sha.hexdigest()


def _as_tensor(image: np.ndarray | Tensor) -> Tensor:
    # torch takes no mirrored views (BGR as RGB), and warns of arrays that it could not write to
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.require(image, requirements="CW"))
