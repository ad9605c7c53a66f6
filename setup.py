"""Package metadata. Build system and tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION_FILE = ROOT / "fastcyclegan" / "version.py"

INSTALL = [
    "torch>=2.11",
    'triton>=3.6; sys_platform == "linux"',
    "numpy>=2.0",
    "pillow>=12.2",
    "nvtx>=0.2.12",
    "safetensors>=0.5",
    "rich>=13.7",
    "jinja2>=3.1",
]
PLOT = ["matplotlib>=3.9"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
TRACK = ["tensorboard>=2.20"]
EVAL = ["torchmetrics>=1.6"]
TEST = [
    "matplotlib>=3.9",
    "onnx>=1.17",
    "onnxscript>=0.5",
    "onnxruntime>=1.20",
    "tensorboard>=2.20",
    "pytest>=8.3",
    "pytest-benchmark>=5.1",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "build>=1.2",
    "packaging>=24",
    "torchmetrics>=1.6",
    "selenium>=4.40",
]

setup(
    name="fastcyclegan",
    # Read, not imported: importing would need the dependencies that are about to be installed.
    version=re.search(r'^__version__ = "([^"]+)"$', VERSION_FILE.read_text(), re.MULTILINE)[1],
    description="A lean and fast CycleGAN trainer for PyTorch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="fastcyclegan maintainers",
    license_expression="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The sources of the ops lie in kernels/; their import name is fastcyclegan.kernels.
    packages=[*find_packages(include=["fastcyclegan", "fastcyclegan.*"]), "fastcyclegan.kernels"],
    package_dir={"fastcyclegan.kernels": "kernels"},
    package_data={"fastcyclegan.runs.report": ["*.html", "*.css", "*.js"]},
    install_requires=INSTALL,
    extras_require={
        "test": TEST,
        "plot": PLOT,
        "export": EXPORT,
        "eval": EVAL,
        "track": TRACK,
    },
)
