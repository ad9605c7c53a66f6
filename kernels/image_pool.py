"""The image pool: a history of generated images that the discriminators are shown.

For each image of a batch, in order, with capacity K:

- fewer than K stored: store it and return it;
- else with probability one half: return the image in a uniformly drawn slot and put the new one
  in its place;
- else return the new image and store nothing.

Bytes for one image: the slot read, the slot and the result written.
"""

import torch


def image_pool_ref(
    pool: torch.Tensor,
    count: torch.Tensor,
    images: torch.Tensor,
    swap: torch.Tensor,
    slot: torch.Tensor,
) -> torch.Tensor:
    """Query the pool with a batch, without a host sync; ``pool`` and ``count`` change in place.

    Args:
        pool: (K, C, H, W), K >= 1.
        count: 0-D int64, images stored so far.
        images: (N, C, H, W), dtype of ``pool``.
        swap: (N,) bool, the coin of each image.
        slot: (N,) int64 in [0, K), the slot of each image.

    Returns:
        (N, C, H, W): for each image itself or the one it replaced.

    Source: Shrivastava et al. (2016), as used by Zhu et al., CycleGAN (2017).
    """
    capacity = pool.shape[0]
    results = []
    for image, coin, drawn in zip(images.split(1), swap.split(1), slot.split(1), strict=True):
        filling = count < capacity
        place = torch.where(filling, count, drawn)
        stored = pool.index_select(0, place)
        results.append(torch.where(coin & ~filling, stored, image))
        pool.index_copy_(0, place, torch.where(coin | filling, image, stored))
        count += filling
    return torch.cat(results).contiguous(memory_format=torch.channels_last)
