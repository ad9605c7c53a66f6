"""Instance norm, ReLU and reflection padding as PyTorch has them: gradients, layouts, times."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.probes.timing import Budget, free_memory, interleaved_us

EPS = 1e-5
Op = Callable[[torch.Tensor], torch.Tensor]


def normalise(y: torch.Tensor) -> torch.Tensor:
    """Instance norm of y (N, C, H, W) from var_mean and rsqrt, computed in fp32 at least."""
    wide = y if y.dtype == torch.float64 else y.float()
    var, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
    return (wide - mean) * torch.rsqrt(var + EPS)


def norm_relu_pad(y: torch.Tensor) -> torch.Tensor:
    """Reflection padding of ReLU of the instance norm, in y's dtype."""
    return F.pad(F.relu(normalise(y)).to(y.dtype), (1, 1, 1, 1), mode="reflect")


def eager_norm_relu_pad(y: torch.Tensor) -> torch.Tensor:
    """The same through the three library calls."""
    return F.pad(F.relu(F.instance_norm(y, eps=EPS)), (1, 1, 1, 1), mode="reflect")


def _is_nhwc(t: torch.Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last)


def norm_gradients(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Gradient of F.instance_norm by layout of x and dy, against the var_mean form in fp64."""
    shapes = [(1, 8, 16, 16), (2, 8, 16, 16)]
    if not tiny:
        shapes += [(1, 256, 64, 64), (2, 256, 64, 64)]
    rows = []
    for shape in shapes:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            rows += _gradient_rows(shape, dtype, device)
    worst = max(r["relative_error"] for r in rows if r["dtype"] != "bfloat16")
    return {"op": "F.instance_norm", "rows": rows, "worst_fp32_fp64": worst}


def _gradient_rows(shape: tuple, dtype: torch.dtype, device: torch.device) -> list[dict]:
    x0 = (torch.randn(shape, device=device) * 2 + 0.5).to(dtype)
    dy0 = torch.randn(shape, device=device).to(dtype)
    truth_x = x0.double().requires_grad_()
    (truth,) = torch.autograd.grad(normalise(truth_x), truth_x, dy0.double())
    rows = []
    for x_layout in (torch.contiguous_format, torch.channels_last):
        for dy_layout in (torch.contiguous_format, torch.channels_last):
            x = x0.contiguous(memory_format=x_layout).requires_grad_()
            y = F.instance_norm(x, eps=EPS)
            (dx,) = torch.autograd.grad(y, x, dy0.contiguous(memory_format=dy_layout))
            error = (dx.double() - truth).abs().max() / truth.abs().max()
            rows.append(
                {
                    "shape": list(shape),
                    "dtype": str(dtype).removeprefix("torch."),
                    "x": "NHWC" if x_layout == torch.channels_last else "NCHW",
                    "dy": "NHWC" if dy_layout == torch.channels_last else "NCHW",
                    "relative_error": float(f"{float(error):.3g}"),
                }
            )
    return rows


def layouts(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Which library calls keep channels_last, forward and in the input's gradient, in bf16."""
    channels, side = (8, 16) if tiny else (256, 64)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=torch.bfloat16)
    weight = weight.to(memory_format=torch.channels_last)
    ops: dict[str, Op] = {
        "F.instance_norm": lambda x: F.instance_norm(x, eps=EPS),
        "F.group_norm(C groups)": lambda x: F.group_norm(x, channels, eps=EPS),
        "var_mean form": lambda x: normalise(x).to(x.dtype),
        "F.pad reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        "F.conv2d": lambda x: F.conv2d(x, weight, padding=1),
        "F.conv_transpose2d": lambda x: F.conv_transpose2d(x, weight, stride=2, padding=1),
    }
    rows = []
    for batch in (1, 2):
        shape = (batch, channels, side, side)
        for name, op in ops.items():
            rows.append(_layout_row(name, op, torch.randn(shape, device=device).bfloat16()))
    return {"rows": rows}


def _layout_row(name: str, op: Op, x: torch.Tensor) -> dict:
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = op(x)
    dy = torch.randn_like(y).contiguous(memory_format=torch.channels_last)
    (first,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    repeats = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for _ in range(5)]
    return {
        "op": name,
        "N": x.shape[0],
        "y_keeps_channels_last": _is_nhwc(y),
        "dx_keeps_channels_last": _is_nhwc(first),
        "dx_same_bits_in_6_runs": all(torch.equal(first, dx) for dx in repeats),
    }


def norm_times(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """us of forward and forward + backward at the trunk shape; backward is the difference."""
    channels, side = (8, 16) if tiny else (256, 64)
    section: dict = {"shape": f"(N, {channels}, {side}, {side}) bf16", "rows": []}
    for batch in (1, 2) if tiny else (1, 2, 8):
        x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
        ops: dict[str, tuple[Op, str]] = {
            "instance_norm": (lambda t: F.instance_norm(t, eps=EPS), "both"),
            "reflection pad": (lambda t: F.pad(t, (1, 1, 1, 1), mode="reflect"), "both"),
            "instance_norm + relu + pad": (eager_norm_relu_pad, "both"),
            "compiled var_mean form + relu + pad": (_compiled(norm_relu_pad), "NHWC"),
            "compiled instance_norm + relu + pad": (_compiled(eager_norm_relu_pad), "NHWC"),
        }
        if batch != 2:
            del ops["compiled instance_norm + relu + pad"]
        for name, (op, where) in ops.items():
            for layout in ("NHWC", "NCHW") if where == "both" else ("NHWC",):
                if budget.left() > 15:
                    section["rows"].append(_time_row(name, op, x, layout, device))
        free_memory(device)
    return section


def _compiled(op: Op) -> Op:
    torch._dynamo.reset()
    return torch.compile(op, fullgraph=True, dynamic=False)


def _time_row(name: str, op: Op, x: torch.Tensor, layout: str, device: torch.device) -> dict:
    row = {"op": name, "N": x.shape[0], "layout": layout}
    memory_format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    try:
        x = x.contiguous(memory_format=memory_format)

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return op(x)

        y = forward()
        # dy in the wanted layout: the consumer's dgrad hands it over in its own layout.
        dy = torch.randn_like(y).contiguous(memory_format=memory_format)

        def both() -> object:
            # A new leaf each time: an old one's gradient node belongs to another stream, which
            # breaks the capture.
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(op(leaf), leaf, dy)

        us = interleaved_us({"fwd": forward, "fwd_bwd": both}, device)
        bwd = us["fwd_bwd"]["median"] - us["fwd"]["median"]
        row |= {"us": us, "bwd_us": round(bwd, 2), "y_is_channels_last": _is_nhwc(y)}
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    return row
