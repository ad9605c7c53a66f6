"""What generators and discriminators have in common: weights apart from the computation.

A network computes with a flat sequence of weights that the caller may pass in, so that a training
step can use copies in bf16, or detached ones that get no gradient, without touching the module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from fastcyclegan.models.layers import EPS, MOMENTUM, NORMS, Layer
from fastcyclegan.pixel_range import PIXEL_RANGES

# in the order of the fields of Layer
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


class _Affine(nn.Module):
    """Scale and shift of an instance norm, (C,) each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


Pieces = Mapping[str, Callable[..., torch.Tensor]]


class Network(nn.Module):
    """Base class of all networks: convolutions, each with a norm behind it or none.

    In training mode batch norms use and record the statistics of the batch, and dropout drops; in
    eval mode neither does.

    Args:
        arch: JSON-able description, enough for :func:`fastcyclegan.models.build`. Its ``norm`` is
            ``instance``, ``batch`` or ``none``; a generator's has ``pixel_range``.

    Attributes:
        PIECES: the plain functions that the network is made of, by name.
        affine: whether instance norms have scale and shift.
        pieces: those that ``compute`` calls: PIECES, or compiled ones in their place. Calling the
            module itself always uses PIECES.
        impl: of the fused ops: ``ref``, ``triton``, or None for Triton on CUDA alone. Triton's have
            no second derivative.
        sync_bn: whether batch norms in training are over the images of all processes.
        arch: as given.
        norm_keys: where norms stand, by state_dict prefix, with or without parameters.
        multiple: pixels; heights and widths must be multiples of this.
        smallest: pixels; heights and widths must be no less than this.
        pixel_range: a generator's, of its input and output.

    Raises:
        ValueError: an unknown norm or pixel range.
    """

    PIECES: ClassVar[Pieces]
    affine: ClassVar[bool] = False
    multiple: int = 1
    smallest: int = 1

    def __init__(self, arch: dict[str, Any]) -> None:
        super().__init__()
        self.arch = {"class": type(self).__name__, **arch}
        self.norm = arch["norm"]
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}: not one of {', '.join(NORMS)}")
        self.pixel_range = arch.get("pixel_range", "tanh")
        if self.pixel_range not in PIXEL_RANGES:
            known = ", ".join(PIXEL_RANGES)
            raise ValueError(f"pixel_range={self.pixel_range!r}: not one of {known}")
        self.pieces = self.PIECES
        self.impl: str | None = None
        self.sync_bn = False
        self.norm_keys: set[str] = set()
        self._units: list[tuple[str, str | None]] = []

    @property
    def inner_bias(self) -> bool:
        """Whether convolutions in front of a norm have a bias: JZ's rule, dead as it is there."""
        return self.norm == "instance"

    @property
    def per_sample(self) -> bool:
        """Whether each image's output depends on that image alone, so that sets can be joined."""
        return self.norm != "batch"

    @property
    def title(self) -> str:
        """The class and everything that chooses its shape, for people."""
        told = (f"{name} {value}" for name, value in self.arch.items() if name != "class")
        return f"{self.arch['class']} ({', '.join(told)})"

    @property
    def last(self) -> nn.Module:
        """The convolution whose output is the network's, but for the last activation."""
        return self.get_submodule(self._units[-1][0])

    def _add(self, key: str, convolution: nn.Module, norm_key: str | None = None) -> None:
        """Register a convolution, and the norm behind it, under JZ's dotted keys."""
        self._put(key, convolution)
        self._units.append((key, norm_key))
        if norm_key is None:
            return
        self.norm_keys.add(norm_key)
        if self.norm == "instance":
            # the norm subtracts it again: kept as a key, never computed with
            convolution.bias.requires_grad_(False)
            if self.affine:
                self._put(norm_key, _Affine(convolution.out_channels))
        elif self.norm == "batch":
            norm = nn.BatchNorm2d(convolution.out_channels, eps=EPS, momentum=MOMENTUM)
            self._put(norm_key, norm)

    def _put(self, key: str, module: nn.Module) -> None:
        *path, last = key.split(".")
        folder: nn.Module = self
        for name in path:
            if name not in folder._modules:
                folder.add_module(name, nn.Module())
            folder = folder._modules[name]
        folder.add_module(last, module)

    def _finish(self) -> None:
        """Called at the end of construction: note what is live, and go to channels_last."""
        names = (name for name, p in self.named_parameters() if p.requires_grad)
        self._live = dict.fromkeys(names)
        self.to(memory_format=torch.channels_last)

    def live_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the output depends on, by state_dict key, in a fixed order."""
        return ((name, p) for name, p in self.named_parameters() if name in self._live)

    def weights_in(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The live parameters as ``compute`` wants them for images of ``dtype``.

        Scale and shift of a norm stay in at least fp32, since the norm computes in that; the
        tensors of convolutions are cast. A parameter that has its dtype already is returned itself.
        """
        wide = torch.promote_types(dtype, torch.float32)
        return [
            p.to(wide if name.rpartition(".")[0] in self.norm_keys else dtype)
            for name, p in self.live_parameters()
        ]

    def compute(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], weighed: int | None = None
    ) -> torch.Tensor:
        """The network's output for ``x``, computed with ``weights`` instead of its own.

        Args:
            x: (N, C, H, W), best in channels_last memory.
            weights: one tensor per live parameter, in that order, as :meth:`weights_in` gives them.
            weighed: of a discriminator whose norms have no weights: these get the gradients of the
                first ``weighed`` images alone, and only the other images get a gradient.
        """
        layers = self._layers(weights)
        if weighed is not None:
            layers = [layer._replace(weighed=weighed) for layer in layers]
        return self._compute(x, layers, self.pieces)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output for ``x`` (N, C, H, W), with its own weights in the dtype of x.

        In channels_last, except for fp32 and fp64 on a CPU: convolutions in NCHW are no slower
        there, and in fp32 twice as exact (greatest error of a whole generator 5e-6 against 1.1e-5).
        """
        narrow = x.dtype in (torch.bfloat16, torch.float16)
        kernels = x.is_cuda or self.impl == "triton"
        layout = torch.channels_last if narrow or kernels else torch.contiguous_format
        weights = [
            w.contiguous(memory_format=layout) if w.ndim == 4 else w
            for w in self.weights_in(x.dtype)
        ]
        x = x.contiguous(memory_format=layout)
        return self._compute(x, self._layers(weights), self.PIECES)

    def _layers(self, weights: Sequence[torch.Tensor]) -> list[Layer]:
        """The network's convolutions in the order of construction; counts a pass of batch norms."""
        named = dict(zip(self._live, weights, strict=True))
        if self.norm == "batch":
            named |= dict(self.named_buffers())
            if self.training:
                torch._foreach_add_([b for k, b in named.items() if k.endswith("_tracked")], 1)
        return [self._layer(named, *unit) for unit in self._units]

    def _layer(self, named: dict[str, torch.Tensor], key: str, norm_key: str | None) -> Layer:
        convolution = named[f"{key}.weight"], named.get(f"{key}.bias")
        if norm_key is None:
            return Layer(*convolution, impl=self.impl)
        tensors = (named.get(f"{norm_key}.{x}") for x in _BATCH_NORM)
        return Layer(*convolution, self.norm, *tensors, self.impl, sync=self.sync_bn)

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        raise NotImplementedError
