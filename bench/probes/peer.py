"""Step time of junyanz's pytorch-CycleGAN-and-pix2pix, checkout named by FASTCYCLEGAN_PEER_JZ.

Its own model class is driven with its own defaults on random images that are already on the device:
no data loader, so what is timed is `optimize_parameters()` alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch

from bench.jz import VARIABLE, checkout, cyclegan_model
from bench.probes.timing import (
    Body,
    Budget,
    busy_us,
    elapsed_ms,
    free_memory,
    host_ms,
    spread,
    trace_kernels,
)

VARIANTS = {
    "fp32 (TF32 convolutions)": {},
    "autocast bf16": {"autocast": True},
    "autocast bf16, channels_last": {"autocast": True, "channels_last": True},
}
CLASSES = {
    "Inductor": r"^triton_",
    "layout change": r"nchwToNhwc|nhwcToNchw|convertTensor|transpose",
    "reflection pad": r"reflection",
    "norm": r"batch_norm|bn_|welford|norm_",
    "optimiser": r"multi_tensor|FusedAdam|foreach",
    "conv": r"xmma|cutlass|cudnn|implicit|sm80|sm90|gemm|wgrad|dgrad|fprop|conv",
    "reduce": r"reduce",
    "copy or fill": r"copy|Memcpy|Memset|FillFunctor",
    "elementwise": r"elementwise|Cat",
}


class PeerStep:
    """The peer's model with one batch in place; calling it does one training step.

    Args:
        batch, side: images of each domain, and their pixels.
        options: of the peer; those not given have its defaults.
    """

    def __init__(
        self,
        batch: int,
        device: torch.device,
        side: int = 256,
        autocast: bool = False,
        channels_last: bool = False,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = cyclegan_model(device, **options)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for name in self.model.model_names:
            getattr(self.model, f"net{name}").to(device=device, memory_format=layout)
        images = [torch.rand(batch, 3, side, side, device=device) * 2 - 1 for _ in range(2)]
        images = [t.contiguous(memory_format=layout) for t in images]
        self.model.set_input({"A": images[0], "B": images[1], "A_paths": [], "B_paths": []})
        # A full pool from the start, as in all but the first 50 images of a run.
        for pool in (self.model.fake_A_pool, self.model.fake_B_pool):
            pool.query(torch.rand(50, 3, side, side, device=device) * 2 - 1)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=autocast)

    def __call__(self) -> None:
        with self.autocast:
            self.model.optimize_parameters()

    def losses(self) -> dict[str, float]:
        names = self.model.loss_names
        return {k: round(float(getattr(self.model, f"loss_{k}").detach()), 4) for k in names}


def peer_step(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """ms per step, kernels per step and where the time goes, for each variant at batch 1 and 8."""
    if checkout() is None:
        return {"skipped": f"{VARIABLE} names no checkout of the peer"}
    rows, sizes = [], (1, 8)
    small = {"side": 64, "ngf": 4, "ndf": 4, "netG": "resnet_6blocks"} if tiny else {}
    models = {b: {k: PeerStep(b, device, **small, **v) for k, v in VARIANTS.items()} for b in sizes}
    for batch in sizes:
        rows += _rows(models[batch], batch, device, tiny)
    # The profiler slows later launches down, so that all profiles come after all timings.
    for row in rows:
        step = models[row["batch"]][row["variant"]]
        row |= kernel_profile(step, device, 1 if tiny else 3)
    del models
    free_memory(device)
    tf32 = torch.backends.cudnn.allow_tf32
    return {"size": "256x256, ResNet-9, identity on", "cudnn_allow_tf32": tf32, "rows": rows}


def _rows(steps: dict[str, PeerStep], batch: int, device: torch.device, tiny: bool) -> list[dict]:
    count, rounds = (1, 1) if tiny else ((20, 3) if batch == 1 else (6, 3))
    samples: dict[str, list[float]] = defaultdict(list)
    host: dict[str, list[float]] = defaultdict(list)
    peak = {}
    for name, step in steps.items():
        _reset_peak(device)
        for _ in range(1 if tiny else 5):
            step()
        peak[name] = _peak_gib(device)
    for _ in range(rounds):
        for name, step in steps.items():
            samples[name] += elapsed_ms(step, device, count + 2)[-count:]
            host[name] += host_ms(step, device, 2)
    rows = []
    for name, step in steps.items():
        ms = spread(samples[name])
        row = {"variant": name, "batch": batch, "ms_per_step": ms}
        row["pairs_per_s"] = round(1e3 * batch / ms["median"], 1)
        row["host_ms_per_step"] = spread(host[name])
        row["peak_GiB_with_the_other_models"] = peak[name]
        row["losses"] = step.losses()
        rows.append(row)
    return rows


def kernel_profile(step: Body, device: torch.device, calls: int) -> dict:
    """Launches and ms per call of `step`: in all, by class of kernel, and of the longest ones."""
    events = trace_kernels(step, device, calls)
    by_name: dict[str, list[float]] = defaultdict(list)
    by_class: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_name[event["name"]].append(event["dur_us"])
        by_class[_class_of(event["name"])].append(event["dur_us"])
    total = sum(e["dur_us"] for e in events) or 1.0

    def line(label: str, durations: list[float]) -> dict:
        return {
            "name": label[:160],
            "launches": round(len(durations) / calls, 1),
            "ms": round(sum(durations) / calls / 1e3, 3),
            "share": round(sum(durations) / total, 3),
        }

    def ranked(groups: dict[str, list[float]]) -> list[dict]:
        return [line(k, v) for k, v in sorted(groups.items(), key=lambda kv: -sum(kv[1]))]

    return {
        "kernels_per_step": round(sum(e["kind"] == "kernel" for e in events) / calls, 1),
        "device_activities_per_step": round(len(events) / calls, 1),
        "gpu_busy_ms_per_step": round(busy_us(events) / calls / 1e3, 3),
        "classes": ranked(by_class),
        "top_kernels": ranked(by_name)[:12],
    }


def _class_of(name: str) -> str:
    return next((k for k, pattern in CLASSES.items() if re.search(pattern, name)), "other")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)
