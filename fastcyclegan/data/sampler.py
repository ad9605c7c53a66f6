"""Batches of images: which ones, which windows and flips follow from seed and step."""

import torch
from torch import Tensor

from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.errors import UserError
from fastcyclegan.kernels.augment import augment, crop_ref, normalise_ref
from fastcyclegan.kernels.philox import ORDER, SAMPLE_A, SAMPLE_B, philox_ref, randint
from fastcyclegan.pixel_range import PIXEL_RANGES

DATA_ON = ("auto", "device", "host")


def epoch_order(seed: int, epoch: int, length: int) -> Tensor:
    """A permutation of 0 .. length-1, (length,) int64 on the CPU: that of this seed and epoch."""
    counter = epoch * 2**32 + torch.arange(length)
    return torch.argsort(philox_ref(seed, ORDER, counter)[0], stable=True)


def _same_size(images: ImageSet) -> tuple[int, int] | None:
    sizes = set(zip(images.height.tolist(), images.width.tolist(), strict=True))
    return sizes.pop() if len(sizes) == 1 else None


def _fits(device: torch.device, *sets: ImageSet) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    needed = sum(s.pixels.numel() for s in sets if s.pixels.device != device)
    return needed <= free // 2


class ImageSampler:
    """Random batches from one domain, or from two as the reference's unaligned data set draws them.

    Image number i = step * batch_size + k belongs to epoch i // epoch_length. Domain A follows a
    permutation per epoch (modulo its length), domain B is drawn with replacement; with ``serial``
    both are taken in order. Every image gets its own crop window and flip. Nothing is kept from
    step to step: the numbers are the same on every device and after every resume.

    Args:
        sets: the decoded images of domain A and, if there are two, of domain B.
        batch_size: images per batch and domain. Batches run on across the ends of epochs.
        crop_size: side of the window in pixels; None for whole images.
        flip: mirror half of the images.
        serial: no shuffling.
        seed: any integer; its low 32 bits are used.
        device, dtype, pixel_range: of the batches.
        data_on: where the images are kept: "device", "host", or "auto", which is the device if
            they fit into half of its free memory.

    Raises:
        UserError: an image is smaller than the window, or whole images of different sizes are
            asked for in one batch.
    """

    def __init__(
        self,
        *sets: ImageSet,
        batch_size: int = 1,
        crop_size: int | None = 256,
        flip: bool = True,
        serial: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        pixel_range: str = "tanh",
        data_on: str = "auto",
    ) -> None:
        if data_on not in DATA_ON:
            raise UserError(f"--data_on {data_on}: want one of {', '.join(DATA_ON)}")
        self.batch_size, self.crop_size, self.flip = batch_size, crop_size, flip
        self.serial, self.seed = serial, seed
        self.dtype = dtype
        self._range = PIXEL_RANGES[pixel_range][:2]
        self.device = torch.empty(0, device=device).device
        self._sizes = tuple(map(_same_size, sets))
        self._check(sets)
        # Drawn on the CPU: a few integers per image, which cross to the device in one copy.
        self._tables = [torch.stack([s.offset, s.height, s.width]).cpu() for s in sets]
        on_device = data_on == "device" or (data_on == "auto" and _fits(self.device, *sets))
        self.data_device = self.device if on_device else torch.device("cpu")
        self._pixels = [s.pixels.to(self.data_device) for s in sets]
        self._orders: dict[int, Tensor] = {}

    def _check(self, sets: tuple[ImageSet, ...]) -> None:
        for domain, images in zip("AB", sets, strict=False):
            low = int(torch.minimum(images.height, images.width).min())
            if self.crop_size is not None and low < self.crop_size:
                raise UserError(
                    f"domain {domain} has an image with a side of {low} pixels, "
                    f"smaller than --crop_size {self.crop_size}"
                )
            if self.crop_size is None and self.batch_size > 1 and _same_size(images) is None:
                raise UserError(
                    f"the images of domain {domain} have different sizes: --batch_size "
                    f"{self.batch_size} needs a --preprocess that ends in crop, or --batch_size 1"
                )

    @property
    def epoch_length(self) -> int:
        """Images per epoch: those of the larger domain."""
        return max(table.shape[1] for table in self._tables)

    @property
    def sizes(self) -> tuple[tuple[int, int] | None, ...]:
        """(h, w) of every batch, for each domain; None for one where it varies."""
        if self.crop_size is not None:
            return ((self.crop_size, self.crop_size),) * len(self._sizes)
        return self._sizes

    @property
    def uniform_size(self) -> tuple[int, int] | None:
        """(h, w) of every batch of all domains, or None if it varies."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else None

    def _order(self, first_epoch: int, last_epoch: int) -> Tensor:
        # One epoch ahead, so that at an epoch's end the permutation is there already.
        epochs = range(first_epoch, last_epoch + 2)
        kept = self._orders
        self._orders = {
            e: kept[e] if e in kept else epoch_order(self.seed, e, self.epoch_length)
            for e in epochs
        }
        if first_epoch == last_epoch:
            return self._orders[first_epoch]
        return torch.cat([self._orders[e] for e in range(first_epoch, last_epoch + 1)])

    def _draw(self, step: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        first = step * self.batch_size
        i = torch.arange(first, first + self.batch_size)
        lengths = [table.shape[1] for table in self._tables]
        streams = torch.tensor([[SAMPLE_A], [SAMPLE_B]])[: len(lengths)]
        words = philox_ref(self.seed, streams, i)
        place = i % self.epoch_length
        if self.serial:
            return torch.stack([place % length for length in lengths]), words
        epoch, last = (n // self.epoch_length for n in (first, first + self.batch_size - 1))
        order = self._order(epoch, last)[i - epoch * self.epoch_length]
        others = [randint(word, n) for word, n in zip(words[0][1:], lengths[1:], strict=True)]
        return torch.stack([order % lengths[0], *others]), words

    def indices(self, step: int) -> tuple[Tensor, ...]:
        """The images of batch ``step``: a (batch_size,) int64 tensor on the CPU per domain."""
        return tuple(self._draw(step)[0])

    def numbers(self, step: int) -> Tensor:
        """(batch_size,) int64 on ``device``: the running numbers of the images of batch ``step``.

        The functions of a training step draw what is random in them from these.
        """
        first = step * self.batch_size
        return torch.arange(first, first + self.batch_size, device=self.device)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Batch number ``step`` (from 0).

        Returns:
            For each domain (batch_size, C, h, w) of ``dtype`` in ``pixel_range``, channels_last, on
            ``device``. The host does not wait for the device.
        """
        index, (_, r_top, r_left, r_flip) = self._draw(step)
        sizes, plans = [], []
        for domain in range(len(self._tables)):
            offset, height, width = self._tables[domain][:, index[domain]]
            size = self.uniform_size or (int(height[0]), int(width[0]))
            top = randint(r_top[domain], height - size[0] + 1)
            left = randint(r_left[domain], width - size[1] + 1)
            flip = (r_flip[domain] < 2**31) & self.flip
            sizes.append(size)
            plans.append(torch.stack([offset, width, top, left, flip]))
        plan = _send(torch.stack(plans), self.data_device)
        return tuple(self._cut(d, plan[d], size) for d, size in enumerate(sizes))

    def _cut(self, domain: int, plan: Tensor, size: tuple[int, int]) -> Tensor:
        pixels = self._pixels[domain]
        if self.data_device == self.device:
            zero, scale = self._range
            return augment(pixels, *plan, size, self.dtype, zero=zero, scale=scale)
        *window, flip = plan
        # Bytes cross to the device, not floats.
        windows = _send(crop_ref(pixels, *window, flip.bool(), size), self.device)
        return normalise_ref(windows, self.dtype, *self._range).permute(0, 3, 1, 2)


def _send(x: Tensor, device: torch.device) -> Tensor:
    if x.device == device:
        return x
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
