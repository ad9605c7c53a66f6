"""Does cuDNN fuse scale, bias, ReLU, convolution and statistics in bf16, and how fast is it?

Tried on the trunk layer. The statistics are per channel over the whole batch, so that only N = 1
gives those of an instance norm.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

from bench.probes.timing import Budget, interleaved_us

PATTERNS = {
    "conv": (False, False),
    "conv + genstats": (False, True),
    "scale + bias + relu + conv": (True, False),
    "scale + bias + relu + conv + genstats": (True, True),
}


def sbrcs(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Tries each pattern in fp16 and bf16 at N = 1 and 2, checks and times what runs."""
    if importlib.util.find_spec("cudnn") is None:
        return {"skipped": "package absent (nvidia-cudnn-frontend)"}
    import cudnn

    section = {"frontend": cudnn.__version__, "backend": cudnn.backend_version(), "rows": []}
    handle = cudnn.create_handle()
    for batch in (1, 2):
        for dtype in (torch.bfloat16, torch.float16):
            for name, (prologue, stats) in PATTERNS.items():
                row = {"pattern": name, "N": batch, "dtype": str(dtype).removeprefix("torch.")}
                try:
                    row |= _case(cudnn, handle, batch, dtype, prologue, stats, device)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {str(error)[:240]}"
                section["rows"].append(row)
    return section


def _case(cudnn, handle, batch: int, dtype, prologue: bool, stats: bool, device) -> dict:
    x, weight, scale, bias = _inputs(batch, dtype, device)
    graph, named = _graph(cudnn, handle, (x, weight, scale, bias), prologue, stats)
    y = F.conv2d(x, weight).contiguous(memory_format=torch.channels_last)
    sums = [torch.full((1, 256, 1, 1), torch.nan, device=device) for _ in range(2)]
    y.fill_(torch.nan)
    buffers = dict(
        zip(
            ("x", "weight", "scale", "bias", "y", "sum", "squares"),
            (x, weight, scale, bias, y, *sums),
            strict=True,
        )
    )
    pack = {tensor: buffers[name].data_ptr() for name, tensor in named.items()}
    workspace = torch.empty(max(1, graph.get_workspace_size()), device=device, dtype=torch.uint8)

    def run() -> None:
        cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
        graph.execute(pack, workspace.data_ptr(), handle=handle)

    run()
    torch.cuda.synchronize()
    row = _errors(buffers, prologue, stats)
    us = interleaved_us({"cudnn graph": run, "F.conv2d": lambda: F.conv2d(x, weight)}, device)
    return row | {"supported": True, "us": us}


def _inputs(batch: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """x (N, 256, 66, 66), weight (256, 256, 3, 3), scale and bias (1, 256, 1, 1)."""
    shapes = ((batch, 256, 66, 66), (256, 256, 3, 3), (1, 256, 1, 1), (1, 256, 1, 1))
    x, weight, scale, bias = (
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        for shape in shapes
    )
    return x, weight * 0.02, scale, bias


def _graph(cudnn, handle, inputs: tuple[torch.Tensor, ...], prologue: bool, stats: bool):
    """The built graph and its tensors by name."""
    io = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}
    kind = io[inputs[0].dtype]
    graph = cudnn.pygraph(
        io_data_type=kind,
        intermediate_data_type=kind,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=handle,
    )
    names = ("x", "weight", "scale", "bias") if prologue else ("x", "weight")
    named = {
        name: graph.tensor(name=name, dim=list(t.size()), stride=list(t.stride()), data_type=kind)
        for name, t in zip(names, inputs, strict=False)
    }
    image = named["x"]
    if prologue:
        scaled = graph.scale(name="scaled", input=image, scale=named["scale"])
        shifted = graph.bias(name="shifted", input=scaled, bias=named["bias"])
        image = graph.relu(name="relu", input=shifted)
    ones, zeros = [1, 1], [0, 0]
    y = graph.conv_fprop(
        image=image, weight=named["weight"], padding=zeros, stride=ones, dilation=ones
    )
    out_shape = (inputs[0].shape[0], 256, 64, 64)
    y.set_output(True).set_data_type(kind).set_dim(list(out_shape))
    y.set_stride([256 * 64 * 64, 1, 256 * 64, 256])
    named["y"] = y
    if stats:
        named["sum"], named["squares"] = graph.genstats(name="stats", input=y)
        for key in ("sum", "squares"):
            named[key].set_output(True).set_data_type(cudnn.data_type.FLOAT)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return graph, named


def _errors(buffers: dict[str, torch.Tensor], prologue: bool, stats: bool) -> dict:
    """Relative errors of y and of the sums against fp64."""
    x, weight, scale, bias = (buffers[k].double() for k in ("x", "weight", "scale", "bias"))
    image = torch.relu(x * scale + bias) if prologue else x
    truth = F.conv2d(image, weight)
    row = {"y_error": _relative(buffers["y"], truth)}
    if stats:
        row["sum_error"] = _relative(buffers["sum"], truth.sum((0, 2, 3), keepdim=True))
        row["squares_error"] = _relative(
            buffers["squares"], truth.square().sum((0, 2, 3), keepdim=True)
        )
    return row


def _relative(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float(f"{float((got.double() - truth).norm() / truth.norm()):.3g}")
