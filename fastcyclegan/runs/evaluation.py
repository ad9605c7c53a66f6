"""What fixed images show about a run: previews, PSNR where the truth is known, distances."""

import torch

from fastcyclegan.data.images import to_uint8
from fastcyclegan.data.toy import psnr as psnr_of_images
from fastcyclegan.models import Network


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


def sliced_wasserstein(x: torch.Tensor, y: torch.Tensor, directions: int = 256) -> float:
    """How far two sets of images are apart as distributions, in the units of a pixel.

    The mean over random unit directions of the distance in transport of both sets' projections
    (W1), times the root of the dimension: two sets of flat images whose greys differ by d are
    at most d apart.

    Args:
        x, y: (N, C, H, W), of one shape.
        directions: always the same ones.

    Source: Rabin et al., Wasserstein Barycenter and its Application to Texture Mixing (2011).
    """
    flat_x, flat_y = (images.float().flatten(1) for images in (x, y))
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(flat_x.shape[1], directions, generator=generator).to(flat_x.device)
    lines = lines / lines.norm(dim=0) * flat_x.shape[1] ** 0.5
    projected = [(flat @ lines).sort(dim=0).values for flat in (flat_x, flat_y)]
    return float((projected[0] - projected[1]).abs().mean()) / flat_x.shape[1] ** 0.5


def mean_distance(x: torch.Tensor) -> float:
    """The mean distance (root mean square over pixels) between two images of (N, C, H, W)."""
    flat = x.float().flatten(1)
    return float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5
