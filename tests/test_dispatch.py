"""Where triton is not installed: everything imports, the references work, the kernels say so."""

import os
import subprocess
import sys

from house_rules import ROOT

WITHOUT = """
import importlib, sys
from pathlib import Path

sys.modules["triton"] = None
sys.path[:0] = [".", "tests"]
for file in sorted(Path("kernels").glob("*.py")):
    importlib.import_module(f"fastcyclegan.kernels.{file.stem}")

import torch
import fastcyclegan.kernels.sync_batch_norm as sync
from op_runs import run
from op_specs import OPS

sync.of_all, sync.sum_of_all = (lambda row: row[None]), torch.clone
for op in OPS:
    tensors, options = op.case(op.main[0], op.shapes[0], torch.float32, "cpu")
    assert run(op, tensors, options, impl=None), op.name
    try:
        op.public(**tensors, **options, impl="triton")
    except RuntimeError as error:
        print(op.name, error)
"""


def test_without_triton():
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    for line in lines:
        assert line.endswith('triton is not installed: install it, or use impl="ref"')
