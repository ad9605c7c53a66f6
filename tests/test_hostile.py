"""Hostile weights files take little memory: none is unpacked, and no claim is believed."""

import os
import subprocess
import sys
import zipfile

import pytest
import torch

from house_rules import ROOT
from test_jz import hostile, rezip

MEMORY = r"""
import re, sys
from pathlib import Path
from fastcyclegan.errors import UserError
from fastcyclegan.models.jz import read_pth

def size(name):
    return int(re.search(name + r":\s*(\d+)", Path("/proc/self/status").read_text())[1])

def tried(path):
    try:
        read_pth(path)
    except UserError:
        return
    raise AssertionError(path)

paths = sorted(Path(sys.argv[1]).iterdir())
tried(paths[0])
resident, largest = size("VmHWM"), max(path.stat().st_size for path in paths)
for path in paths:
    tried(path)
print((size("VmHWM") - resident) * 1024, largest, len(paths))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
def test_a_hostile_file_takes_little_more_memory_than_its_size(tmp_path):
    """Files of megabytes that claim terabytes, or unpack to gigabytes."""
    folder, path = tmp_path / "files", tmp_path / "G.pth"
    folder.mkdir()
    for i, _ in enumerate(hostile(path, tmp_path / "marker")):
        (folder / f"{i:02}.pth").write_bytes(path.read_bytes())
    torch.save({"w": torch.zeros(1 << 24)}, path)
    rezip(path, zipfile.ZIP_DEFLATED)
    (folder / "bomb.pth").write_bytes(path.read_bytes())
    for legacy in (False, True):
        torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=not legacy)
        data = path.read_bytes()
        if legacy:
            data = data.replace(b"K\x04", b"\x8a\x05" + (1 << 34).to_bytes(5, "little"))
        (folder / f"legacy{legacy}.pth").write_bytes(data[: None if legacy else -40])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, folder], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, largest, files = map(int, done.stdout.split())
    assert files == 29 and grown < 3 * largest + 20 * 2**20
