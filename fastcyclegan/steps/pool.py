"""The image pool of one domain, as tensors on the training device."""

from collections.abc import Mapping

import torch

from fastcyclegan.kernels.image_pool import draw, image_pool, undo_image_pool


class ImagePool:
    """A history of ``capacity`` generated images; its draws depend on (seed, image number) alone.

    Args:
        capacity: images kept; 0 hands every image through.
        shape: (C, H, W) of one image.
        dtype, device: of the images.
        seed: of the run.
        stream: which random stream; one per pool.

    Attributes:
        images: (capacity, C, H, W).
        count: 0-D int64, images stored so far, at most ``capacity``.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        stream: int,
    ) -> None:
        self.stream = stream
        # On the device, as is all that a query reads.
        self.seed = torch.tensor(seed & 0xFFFFFFFF, device=device)
        self.images = torch.zeros((capacity, *shape), dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self._last: tuple[torch.Tensor, ...] = ()

    def query(self, images: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """What the discriminator is shown for ``images``: each itself, or an older one.

        Args:
            images: (N, C, H, W); their values, not their gradients, are used.
            number: (N,) int64, the running number of each image in the training.

        Returns:
            (N, C, H, W), channels_last, without gradient.
        """
        if not len(self.images):
            return images.detach()
        # A generator's last convolution may hand out NCHW.
        images = images.contiguous(memory_format=torch.channels_last)
        before = self.count.clone()
        out = image_pool(self.images, self.count, images, self.seed, self.stream, number)
        self._last = out, before, number
        return out

    def put_back(self, shut: torch.Tensor) -> None:
        """Undo the last query where ``shut``, a 0-D bool, holds; no host sync.

        What the query was given and what it handed out must not have changed since.
        """
        if not self._last:
            return
        out, before, number = self._last
        undo_image_pool(self.images, self.count, out, before, self.seed, self.stream, number, shut)
        self._last = ()

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold, by name."""
        return {"images": self.images, "count": self.count}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`state` returned. Raises KeyError, RuntimeError."""
        self.images.copy_(state["images"])
        self.count.copy_(state["count"])


class VariedImagePool:
    """As :class:`ImagePool`, with the same draws, for images that differ in size.

    One image is shown at a time, and the host waits for the device to learn the drawn slot.

    Args:
        capacity: images kept, at least 1.
        seed, stream: as for :class:`ImagePool`.
        device: of the images.
    """

    def __init__(self, capacity: int, seed: int, stream: int, device: torch.device) -> None:
        self.capacity, self.seed, self.stream, self.device = capacity, seed, stream, device
        self.images: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []

    def query(self, images: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """What the discriminator is shown for ``images``, (1, C, H, W): that, or an older one."""
        new = images.detach().clone()
        self._before = list(self.images)
        if len(self.images) < self.capacity:
            self.images.append(new)
            return new
        swap, slot = (int(x) for x in draw(self.seed, self.stream, number, self.capacity))
        if not swap:
            return new
        old, self.images[slot] = self.images[slot], new
        return old

    def put_back(self, shut: torch.Tensor) -> None:
        """Undo the last query if ``shut``, a 0-D bool, holds; the host waits for it."""
        if shut:
            self.images = self._before

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold, by name: ``images/0`` and so on."""
        return {f"images/{slot}": image for slot, image in enumerate(self.images)}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`state` returned."""
        slots = range(len(state))
        self.images = [
            state[f"images/{slot}"].to(self.device).contiguous(memory_format=torch.channels_last)
            for slot in slots
        ]


def make_pool(
    capacity: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    stream: int,
) -> ImagePool | VariedImagePool:
    """An :class:`ImagePool`, or where H and W of ``shape`` are 0 one for images that differ."""
    if capacity and 0 in shape:
        return VariedImagePool(capacity, seed, stream, device)
    return ImagePool(capacity, shape, dtype, device, seed, stream)
