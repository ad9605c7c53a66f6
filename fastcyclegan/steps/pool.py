"""The image pool of one domain, as tensors on the training device."""

import torch

from fastcyclegan.kernels.image_pool import image_pool_ref
from fastcyclegan.kernels.philox import philox_ref, randint


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
        self.seed, self.stream = seed, stream
        self.images = torch.zeros((capacity, *shape), dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def query(self, images: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """What the discriminator is shown for ``images``: each itself, or an older one.

        Args:
            images: (N, C, H, W); their values, not their gradients, are used.
            number: (N,) int64, the running number of each image in the training.

        Returns:
            (N, C, H, W), channels_last, without gradient.
        """
        images = images.detach()
        if not len(self.images):
            return images
        coin, drawn, *_ = philox_ref(self.seed, self.stream, number)
        slot = randint(drawn, len(self.images))
        return image_pool_ref(self.images, self.count, images, coin >= 2**31, slot)
