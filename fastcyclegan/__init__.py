"""fastcyclegan: a fast, exact and friendly trainer for CycleGAN.

Importing this package is cheap: torch is imported when a name that needs it is first used.
"""

from importlib import import_module

from fastcyclegan.version import __version__

__all__ = ["UserError", "__version__", "load_generator"]

_LAZY = {"UserError": "fastcyclegan.errors", "load_generator": "fastcyclegan.models.weights"}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
