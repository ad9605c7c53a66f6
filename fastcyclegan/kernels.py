"""The door to the ops in ``kernels/``, importable as ``fastcyclegan.kernels``.

The sources lie in the top-level folder ``kernels/`` of the repository and are installed as
``fastcyclegan/kernels/``. The plain name ``kernels`` belongs to another project on PyPI, so this
module, not that folder, is what Python imports; its ``__path__`` points at the sources.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "kernels"
__path__ = [str(_INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "kernels")]
