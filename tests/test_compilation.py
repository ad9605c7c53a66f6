"""Compiled networks compute what the eager ones do, and compile once per kind."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code

from fastcyclegan.errors import UserError
from fastcyclegan.kernels.philox import NOISE, normal_ref
from fastcyclegan.models import NLayerDiscriminator, ResnetGenerator
from fastcyclegan.models.layers import Layer
from fastcyclegan.models.resnet import residual_block
from fastcyclegan.steps import dcgan
from fastcyclegan.steps.compilation import (
    SCOPES,
    compile_model,
    compile_networks,
    missing_compiler,
    require_kernels,
)
from fastcyclegan.steps.cyclegan import STEPS
from house_rules import ROOT
from test_cyclegan import images, make_model
from test_dcgan_step import make_model as make_dcgan

CPU = torch.device("cpu")


def test_networks_of_a_kind_share_their_compiled_pieces():
    networks = [ResnetGenerator(ngf=2, n_blocks=1) for _ in range(2)] + [NLayerDiscriminator(ndf=2)]
    compile_networks(networks)
    a, b, judge = networks
    assert a.pieces.keys() == b.pieces.keys() == ResnetGenerator.PIECES.keys()
    assert all(a.pieces[name] is b.pieces[name] for name in a.pieces)
    assert all(a.pieces[name] is not a.PIECES[name] for name in a.pieces)
    assert judge.pieces.keys() == {"patchgan"}


def test_the_module_itself_stays_eager(monkeypatch):
    """Previews and evaluation call the module, and must not wait for a compiler."""
    net = ResnetGenerator(ngf=2, n_blocks=1)
    net.pieces = {}
    assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    with pytest.raises(KeyError):
        net.compute(torch.rand(1, 3, 16, 16), [p for _, p in net.live_parameters()])


def test_a_missing_compiler_is_noticed(monkeypatch):
    assert missing_compiler(CPU) is None or not shutil.which("g++")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install g++" in missing_compiler(CPU)


def test_a_missing_triton_is_noticed(monkeypatch):
    monkeypatch.setattr("fastcyclegan.steps.compilation.find_spec", lambda name: None)
    assert "triton" in missing_compiler(torch.device("cuda"))
    with pytest.raises(UserError, match=r"cuda:1: triton is not installed, .* use --device cpu"):
        require_kernels(torch.device("cuda:1"), "--device cpu")
    require_kernels(CPU, "--device cpu")


@pytest.mark.slow
def test_compiled_code_keeps_channels_last():
    """What a block's backward keeps between its loops is not turned to NCHW and back."""
    last = {"memory_format": torch.channels_last}
    x = torch.rand(1, 32, 16, 16).bfloat16().contiguous(**last).requires_grad_()
    kernels = [torch.rand(32, 32, 3, 3).bfloat16().contiguous(**last) for _ in range(2)]
    first, second = (Layer(kernel.requires_grad_(), norm="instance") for kernel in kernels)
    block = torch.compile(residual_block, fullgraph=True, dynamic=False)

    def forward_and_backward() -> None:
        y = block(x, first, second, "reflect", False, False, False, True)
        torch.autograd.grad(y, [x, *kernels], torch.ones_like(y))

    with fresh_cache():
        _, code = run_and_get_code(forward_and_backward)
    assert len(code) == 2
    assert not any("transpose_mxn" in text for text in code)


def compare_steps(scope: str) -> None:
    """Three steps in fp64, eager and compiled: losses and all weights agree."""
    models = [make_model(lambda_identity=0.5) for _ in range(2)]
    compile_model(models[1], scope)
    for step in range(3):
        batch = images(1, step, 0), images(1, step, 1), torch.arange(1) + step
        wanted, got = (STEPS["fused"](model, *batch) for model in models)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
    eager, compiled = ([p for w in m.weights.values() for p in w.masters] for m in models)
    # Adam turns rounding into steps of lr where a gradient is almost 0, so weights get 1e-3 of lr
    torch.testing.assert_close(compiled, eager, rtol=0, atol=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_the_compiled_step_equals_the_eager_one(scope):
    """In a process of its own: compiled code and its caches stay out of the other tests."""
    code = f"import test_compilation as t; t.compare_steps({scope!r})"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_gpu_draws_by_one_compiled_function(monkeypatch, device, scope):
    model = make_dcgan()
    monkeypatch.setattr(dcgan.DCGAN, "device", torch.device(device))
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f) or f)
    compile_model(model, scope)
    assert (normal_ref in compiled) == (device == "cuda")


def test_what_is_drawn_can_be_compiled_whole():
    """As a GPU's compiler sees it; the bits of the words are the same, of the waves the last."""
    torch._dynamo.reset()
    number = torch.arange(5) + 2**33
    whole = torch.compile(normal_ref, fullgraph=True, dynamic=False, backend="aot_eager")
    found = whole(7, NOISE, number, 100)
    torch.testing.assert_close(found, normal_ref(7, NOISE, number, 100), rtol=1e-6, atol=1e-6)
