"""Batches of images: which ones, which windows and flips follow from seed and step."""

import torch
from torch import Tensor

from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.errors import UserError
from fastcyclegan.kernels.augment import augment, crop_ref, normalise_ref
from fastcyclegan.kernels.philox import ORDER, SAMPLE_A, SAMPLE_B, philox_ref
from fastcyclegan.kernels.windows import draw_windows
from fastcyclegan.pixel_range import PIXEL_RANGES

DATA_ON = ("auto", "device", "host")


def epoch_order(seed: int, epoch: int, length: int) -> Tensor:
    """A permutation of 0 .. length-1, (length,) int64 on the CPU: that of this seed and epoch."""
    counter = epoch * 2**32 + torch.arange(length)
    return torch.argsort(philox_ref(seed, ORDER, counter)[0], stable=True)


def _same_size(images: ImageSet) -> tuple[int, int] | None:
    sizes = set(zip(images.height.tolist(), images.width.tolist(), strict=True))
    return sizes.pop() if len(sizes) == 1 else None


def lies_on(device: torch.device, data_on: str, needed: int) -> bool:
    """Whether ``needed`` bytes of decoded images are kept on ``device``, as ``data_on`` asks.

    ``auto`` takes at most half of a GPU's free memory for them. Raises UserError for another word.
    """
    if data_on not in DATA_ON:
        raise UserError(f"--data_on {data_on}: want one of {', '.join(DATA_ON)}")
    if data_on != "auto" or device.type != "cuda":
        return data_on != "host"
    return needed <= torch.cuda.mem_get_info(device)[0] // 2


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
        part: (i, n): :meth:`batch` is the i-th, from 0, of n equal parts of each batch.
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
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.batch_size, self.crop_size, self.flip = batch_size, crop_size, flip
        self.serial, self.seed = serial, seed
        self._part = slice(*(batch_size * i // part[1] for i in (part[0], part[0] + 1)))
        self.dtype = dtype
        self._range = PIXEL_RANGES[pixel_range][:2]
        self.device = torch.empty(0, device=device).device
        self._whole = tuple(map(_same_size, sets))
        self._check(sets)
        needed = sum(s.pixels.numel() for s in sets if s.pixels.device != self.device)
        stays = lies_on(self.device, data_on, needed)
        self.data_device = self.device if stays else torch.device("cpu")
        self._pixels = [s.pixels.to(self.data_device) for s in sets]
        # Where sizes vary, the host has to know them.
        self._draws_on = torch.device("cpu") if None in self.sizes else self.data_device
        tables = [torch.stack([s.offset, s.height, s.width]) for s in sets]
        self._tables = [table.to(self._draws_on) for table in tables]
        self._seed, self._first_epoch = (
            torch.tensor(x, device=self._draws_on) for x in (seed & 0xFFFFFFFF, -1)
        )
        # Of as many epochs as a batch can touch.
        length = self.epoch_length
        epochs = (batch_size + length - 2) // length + 1
        self._order = torch.empty((epochs, length), dtype=torch.int64, device=self._draws_on)
        self._prepared = -1
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
            return ((self.crop_size, self.crop_size),) * len(self._whole)
        return self._whole

    @property
    def resident(self) -> bool:
        """Whether :meth:`at` works: images, and what is drawn for them, lie on the device."""
        return self._draws_on == self.data_device == self.device

    def prepare(self, step: int) -> None:
        """Have the permutations that batch ``step`` needs where they are read; no host sync."""
        epoch = step * self.batch_size // self.epoch_length
        if epoch == self._prepared:
            return
        kept, self._prepared = self._orders, epoch
        epochs = range(epoch, epoch + len(self._order))
        self._orders = {e: kept[e] if e in kept else self._epoch_order(e) for e in epochs}
        orders = torch.stack(list(self._orders.values()))
        self._order.copy_(_send(orders, self._draws_on))
        self._first_epoch.fill_(epoch)

    def _epoch_order(self, epoch: int) -> Tensor:
        length = self.epoch_length
        return torch.arange(length) if self.serial else epoch_order(self.seed, epoch, length)

    def _draw(self, number: Tensor) -> list[Tensor]:
        """The windows of each domain, (6, N) int64; :func:`draw_windows` names the rows."""
        drawn = []
        for domain, (table, size) in enumerate(zip(self._tables, self.sizes, strict=True)):
            ordered = domain == 0 or self.serial
            given = size, self._order if ordered else None, self._first_epoch
            how = {"stream": (SAMPLE_A, SAMPLE_B)[domain], "flip": self.flip}
            drawn.append(draw_windows(number, self._seed, table, *given, **how))
        return drawn

    def _numbers(self, step: int) -> Tensor:
        self.prepare(step)
        first = step * self.batch_size
        return torch.arange(first, first + self.batch_size, device=self._draws_on)

    def indices(self, step: int) -> tuple[Tensor, ...]:
        """The images of all of batch ``step``: (batch_size,) int64 on the CPU per domain."""
        return tuple(windows[0].cpu() for windows in self._draw(self._numbers(step)))

    def numbers(self, step: int) -> Tensor:
        """(batch_size,) int64 on ``device``: the running numbers of the images of batch ``step``.

        The functions of a training step draw what is random in them from these.
        """
        first = step * self.batch_size
        return torch.arange(first, first + self.batch_size, device=self.device)

    def batch(self, step: int, whole: bool = False) -> tuple[Tensor, ...]:
        """Batch number ``step`` (from 0): this sampler's part of it, or the ``whole``.

        Returns:
            For each domain (N, C, h, w) of ``dtype`` in ``pixel_range``, channels_last, on
            ``device``. The host does not wait for the device.
        """
        numbers = self._numbers(step)
        return self.at(numbers if whole else numbers[self._part])

    def at(self, number: Tensor) -> tuple[Tensor, ...]:
        """The images with the running numbers ``number``, of one batch that is prepared.

        Where the sampler is :attr:`resident`, this is nothing but work of the device, which a CUDA
        graph can capture, and ``number`` may lie there and change between replays.

        Args:
            number: (N,) int64.
        """
        cut = []
        for domain, windows in enumerate(self._draw(number)):
            size = self.sizes[domain] or self._size(domain, windows)
            cut.append(self._cut(domain, _send(windows[1:], self.data_device), size))
        return tuple(cut)

    def _size(self, domain: int, windows: Tensor) -> tuple[int, int]:
        _, height, width = self._tables[domain][:, windows[0, 0]].tolist()
        return height, width

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
    # torch's allocator of pinned memory is a ring: it keeps its blocks, and gives one out again
    # only when the copy that reads it has ended
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
