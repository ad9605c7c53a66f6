"""What is known of a machine's memory, and that freed memory is kept."""

import resource
import subprocess
import sys

import pytest

# Prints whether memory is kept, and page faults per 128 MB that are taken in parts and freed.
FAULTS = """
import resource, torch
from fastcyclegan.memory import keep_freed_memory

def faults(times=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        held = [torch.ones(4 * 2**20) for _ in range(8)]
        del held
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / times

keep = keep_freed_memory()
faults(4)
print(keep, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_not_given_back():
    found = {}
    for name, script in (
        ("kept", FAULTS),
        ("default", FAULTS.replace("keep_freed_memory()\nf", "None\nf")),
    ):
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        keep, faults = result.stdout.split()
        found[name] = float(faults)
        assert keep == {"kept": "True", "default": "None"}[name]
    pages = 128 * 2**20 / resource.getpagesize()
    assert found["kept"] < pages / 100 < pages / 10 < found["default"]
