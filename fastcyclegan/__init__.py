"""fastcyclegan: a fast, exact and friendly trainer for CycleGAN.

Importing this package is cheap: torch is imported when a name that needs it is first used.
docs/api.md shows what the names are for.
"""

from importlib import import_module

from fastcyclegan.version import __version__

# The module that each name is imported from when it is first used.
_LAZY = {
    "UserError": "errors",
    "TRACKERS": "trackers",
    "load_generator": "models.weights",
    "load_network": "models.weights",
    "save_network": "models.weights",
    "build": "models",
    "init_weights": "models.initialisation",
    "ImageSet": "data.image_set",
    "ImageSampler": "data.sampler",
    "Translator": "translation",
    "CycleGAN": "steps.cyclegan",
    "Settings": "steps.cyclegan",
    "fused_step": "steps.cyclegan",
    "read_metrics": "runs.metrics",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"fastcyclegan.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
