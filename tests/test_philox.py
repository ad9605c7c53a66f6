"""Philox-4x32-10 against published vectors, a NumPy formula and Triton's own."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import oracles
from fastcyclegan.kernels import philox

# Random123's kat_vectors: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    words = tuple(torch.tensor(int(x, 16)) for x in counter.split())
    k0, k1 = (int(x, 16) for x in key.split())
    got = philox.philox_4x32(words, (k0, k1))
    assert [f"{int(x):08x}" for x in got] == result.split()


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 5])
def test_agrees_with_the_formula_in_any_shape(seed, traced, monkeypatch):
    """On a CPU in NumPy; in PyTorch where it is traced, as on a GPU."""
    monkeypatch.setattr(philox, "_traced", lambda: traced)
    counter = torch.tensor([[0, 1, 2**32 - 1], [2**32, 7 * 2**32 + 3, 2**62]])
    got = torch.stack(philox.philox_ref(seed, philox.SAMPLE_B, counter))
    for i, n in enumerate(counter.flatten().tolist()):
        want = oracles.philox((n & 0xFFFFFFFF, n >> 32, 0, 0), (seed & 0xFFFFFFFF, 2))
        assert got.reshape(4, -1)[:, i].tolist() == want


def test_streams_may_be_a_tensor():
    counter = torch.arange(5)
    both = philox.philox_ref(3, torch.tensor([[1], [4]]), counter)
    for row, stream in ((0, 1), (1, 4)):
        for word, want in zip(both, philox.philox_ref(3, stream, counter), strict=True):
            assert torch.equal(word[row], want)


def test_uniform_is_the_upper_24_bits():
    r = torch.tensor([0, 255, 256, 2**31, 2**32 - 1])
    assert philox.uniform(r).tolist() == [0.0, 0.0, 2.0**-24, 0.5, 1 - 2.0**-24]
    assert philox.uniform(r).dtype == torch.float32


def test_randint_covers_its_range_evenly():
    r = torch.tensor([0, 2**31 - 1, 2**31, 2**32 - 1])
    assert philox.randint(r, 2).tolist() == [0, 0, 1, 1]
    assert philox.randint(r, torch.tensor([5, 2**31 - 1, 1, 7])).tolist() == [0, 2**30 - 1, 0, 6]
    drawn = philox.randint(philox.philox_ref(0, 0, torch.arange(30_000))[0], 3)
    assert torch.bincount(drawn).tolist() == pytest.approx([10_000] * 3, rel=0.03)


def test_streams_have_their_own_numbers():
    counter = torch.arange(100)
    pairs = (philox.SAMPLE_A, philox.SAMPLE_B, philox.POOL_A, philox.POOL_B)
    streams = (philox.ORDER, *pairs, philox.MIX_A, philox.MIX_B, philox.NOISE, philox.FIXED_NOISE)
    words = torch.cat([torch.cat(philox.philox_ref(0, s, counter)) for s in streams])
    assert streams == tuple(range(9))
    assert len(words.unique()) == 3600


TRITON = """
import torch, triton, triton.language as tl
from fastcyclegan.kernels.philox import philox_ref

@triton.jit
def kernel(seed, stream, counter_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    counter = tl.load(counter_ptr + offs)
    key = (stream.to(tl.uint64) << 32) | (seed.to(tl.uint64) & 0xFFFFFFFF)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = low * 0
    r0, r1, r2, r3 = tl.philox(key, low, high, zero, zero)
    tl.store(out_ptr + offs, r0)
    tl.store(out_ptr + N + offs, r1)
    tl.store(out_ptr + 2 * N + offs, r2)
    tl.store(out_ptr + 3 * N + offs, r3)

counter = torch.tensor([0, 1, 2**32 - 1, 2**32, 5 * 2**32 + 9, 2**40, 123456789, 77])
for seed, stream in ((0, 0), (1234567, 3), (2**32 - 1, 4)):
    out = torch.zeros(4, 8, dtype=torch.int32)
    kernel[(1,)](torch.tensor(seed).item(), stream, counter, out, N=8)
    assert torch.equal(out.long() & 0xFFFFFFFF, torch.stack(philox_ref(seed, stream, counter)))
print("same bits")
"""


def test_same_bits_as_triton(tmp_path):
    pytest.importorskip("triton")
    script = tmp_path / "same_bits.py"
    script.write_text(TRITON)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": root}
    run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert run.stdout == "same bits\n", run.stderr


@pytest.mark.cuda
def test_same_bits_on_cuda():
    counter = torch.arange(1000) * 2**24
    for word, want in zip(
        philox.philox_ref(7, 2, counter.cuda()), philox.philox_ref(7, 2, counter), strict=True
    ):
        assert torch.equal(word.cpu(), want)


def test_normal_numbers_are_those_of_the_formula():
    """Box and Muller's formula in NumPy, fp64, for each row and place alone."""
    rows = philox.normal_ref(9, philox.NOISE, torch.tensor([0, 3, 2**40]), 6)
    for row, number in zip(rows.tolist(), (0, 3, 2**40), strict=True):
        wanted = []
        for block in range(2):
            counter = torch.tensor(number * 2 + block)
            words = [int(w) >> 8 for w in philox.philox_ref(9, philox.NOISE, counter)]
            for r, s in (words[:2], words[2:]):
                radius = np.sqrt(-2 * np.log((r + 1) / 2**24))
                wanted += [radius * np.cos(2 * np.pi * s / 2**24)]
                wanted += [radius * np.sin(2 * np.pi * s / 2**24)]
        np.testing.assert_allclose(row, wanted[:6], rtol=0, atol=2e-6)


def test_normal_numbers_are_normal_and_independent():
    """Moments, tails and correlations of 400,000, within five of their standard errors."""
    x = philox.normal_ref(1, philox.NOISE, torch.arange(4000), 100).double()
    n = x.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - moment) < 5 * (variance / n) ** 0.5
    assert abs(float((x.abs() > 2).double().mean()) - 0.0455) < 5 * (0.0455 / n) ** 0.5
    between = torch.corrcoef(x.T) - torch.eye(100)
    assert float(between.abs().max()) < 6 / 4000**0.5
