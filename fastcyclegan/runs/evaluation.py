"""What fixed images show about a run: previews, scores beside the truth, distances of sets."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from fastcyclegan.data.images import from_uint8, to_uint8
from fastcyclegan.data.toy import psnr as psnr_of_images
from fastcyclegan.models import Network

# Pixels: a side of the windows of :func:`ssim`.
SSIM_WINDOW = 11
# Numbers of images that are computed with at once: 16 images of 256 x 256 in colour.
AT_ONCE = 3 * 2**20


def psnr(images: torch.Tensor, truth: torch.Tensor, pixel_range: str = "tanh") -> float:
    """Peak signal-to-noise ratio in dB, the mean over images.

    Args:
        images, truth: (N, C, H, W); rounded to 8 bits first, as a written image is.
        pixel_range: of both.
    """
    written, wanted = (to_uint8(x, pixel_range).cpu().numpy() for x in (images, truth))
    return float(psnr_of_images(written, wanted).mean())


@torch.no_grad()
def preview_rows(
    G_A: Network, G_B: Network, real_A: torch.Tensor, real_B: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The fixed images through both generators, by label, each (N, C, H, W) on the CPU.

    For each domain: real, fake, rec(onstructed) and, where channels agree, idt (the generator that
    makes this domain, applied to it).
    """
    rows = {}
    for source, target, there, back, real in (
        ("A", "B", G_A, G_B, real_A),
        ("B", "A", G_B, G_A, real_B),
    ):
        fake = each(there, real)
        rows |= {f"real_{source}": real, f"fake_{target}": fake, f"rec_{source}": each(back, fake)}
        if real.shape[1] == fake.shape[1]:
            rows[f"idt_{target}"] = each(back, real)
    return {label: images.float().cpu() for label, images in rows.items()}


@torch.no_grad()
def each(net: Network, images: torch.Tensor) -> torch.Tensor:
    """``net`` in eval mode over (N, C, H, W) images one by one: memory does not grow with N."""
    training = net.training
    net.eval()
    try:
        return torch.cat([net(image) for image in images.split(1)])
    finally:
        net.train(training)


def translated(
    net: Network, images: torch.Tensor, device: torch.device, pixel_range: str = "tanh"
) -> torch.Tensor:
    """What ``net``, on ``device``, makes of uint8 (N, H, W, C) images: the same, on the CPU."""
    parts = (from_uint8(part.to(device), pixel_range=pixel_range) for part in images.split(1))
    return torch.cat([to_uint8(each(net, part), pixel_range).cpu() for part in parts])


class PairScores:
    """How near images are to what they should be, as means over the images, given in parts."""

    def __init__(self) -> None:
        self._found: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": [], "l1": []}

    def add(self, images: torch.Tensor, truth: torch.Tensor) -> None:
        """Count in uint8 (N, H, W, C), of one shape on the CPU, sides of at least SSIM_WINDOW."""
        for x, y in zip(_parts(images), _parts(truth), strict=True):
            self._found["psnr"].append(torch.from_numpy(psnr_of_images(x.numpy(), y.numpy())))
            self._found["ssim"].append(ssim(x, y))
            self._found["l1"].append((x.double() - y.double()).abs().mean((1, 2, 3)) / 127.5)

    def means(self) -> dict[str, float]:
        """``psnr`` in dB, ``ssim`` (see :func:`ssim`), and ``l1``, the mean absolute difference
        where black is -1 and white 1.
        """
        return {name: float(torch.cat(values).mean()) for name, values in self._found.items()}


def pair_scores(images: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """The scores of :class:`PairScores`, of images that are all there."""
    scores = PairScores()
    scores.add(images, truth)
    return scores.means()


def ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair, float64 (N,): 1 where both are equal.

    The mean over channels and all whole windows: Gaussian, 11 x 11, sigma 1.5; K1 0.01, K2 0.03.

    Args:
        x, y: uint8 (N, H, W, C).

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity
    (2004).
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=x.device) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    line = line / line.sum()
    x, y = (images.permute(0, 3, 1, 2).double() for images in (x, y))

    def local(maps: torch.Tensor) -> torch.Tensor:
        """The weighted mean over each window of (N, C, H, W)."""
        single = maps.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(single, line[None, None, :, None]), line[None, None, None])

    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).view(len(x), -1).mean(1)


def sliced_wasserstein(x: torch.Tensor, y: torch.Tensor, directions: int = 256) -> float:
    """How far two sets of images are apart as distributions, in the units of a pixel.

    The mean over random unit directions of the distance in transport of both sets' projections
    (W1): two sets of flat images whose greys differ by d are about 0.8 d apart.

    Args:
        x, y: (N, C, H, W), or uint8 (N, H, W, C), which count from -1 to 1; N may differ.
        directions: always the same ones.

    Source: Rabin et al., Wasserstein Barycenter and its Application to Texture Mixing (2011).
    """
    return transport(*(Projector(directions)(images) for images in (x, y)))


def transport(x: torch.Tensor, y: torch.Tensor) -> float:
    """The mean over columns of the distance in transport (W1) between the values of both.

    Args:
        x, y: (N, columns); N may differ.
    """
    # of both step functions that the sorted columns are, over the share of values
    steps = [torch.arange(1, len(p) + 1, dtype=torch.float64) / len(p) for p in (x, y)]
    ends = torch.cat(steps).unique()
    widths = torch.diff(ends, prepend=ends.new_zeros(1))
    middles = ends - widths / 2
    rows_x, rows_y = (p.sort(dim=0).values[(middles * len(p)).long().to(p.device)] for p in (x, y))
    distances = (rows_x - rows_y).abs().mean(1).double().cpu()
    return float((widths * distances).sum())


class Projector:
    """Projects images to fixed random directions, the same for all images of one size."""

    def __init__(self, directions: int = 256) -> None:
        self._directions = directions
        self._lines: torch.Tensor | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(N, directions) float32 of (N, C, H, W), or uint8 (N, H, W, C)."""
        if self._lines is None:
            size = images[0].numel()
            lines = torch.randn(size, self._directions, generator=torch.Generator().manual_seed(0))
            self._lines = (lines / lines.norm(dim=0)).to(images.device)
        parts = []
        for part in _parts(images):
            pixels = from_uint8(part) if part.dtype == torch.uint8 else part.float()
            parts.append(pixels.flatten(1) @ self._lines)
        return torch.cat(parts)


def _parts(images: torch.Tensor) -> Sequence[torch.Tensor]:
    return images.split(max(1, AT_ONCE // images[0].numel()))


def mean_distance(x: torch.Tensor) -> float:
    """The mean distance (root mean square over pixels) between two images of (N, C, H, W)."""
    flat = x.float().flatten(1)
    return float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5
