"""The short text printed at the end: the figures one looks at first."""

from __future__ import annotations


def summary(results: dict) -> str:
    """Lines of key figures from whatever sections are there."""
    lines: list[str] = []
    for name, section in results.items():
        if "error" in section:
            lines.append(f"{name}: {section['error'].strip().splitlines()[-1][:200]}")
        elif name in _WRITERS:
            try:
                lines += _WRITERS[name](section)
            except (KeyError, TypeError, IndexError) as error:
                lines.append(f"{name}: no summary ({error!r})")
    return "\n".join(lines)


def _ceilings(s: dict) -> list[str]:
    copy, matmul = s["copy_GB_per_s"]["median"], s["matmul_TFLOP_per_s"]["median"]
    return [f"copy {copy} GB/s, matmul {matmul} TFLOP/s"]


def _nodes(s: dict) -> list[str]:
    sizes = [k for k in s if isinstance(s[k], dict) and "us_per_node" in s[k]]
    return ["us per node: " + ", ".join(f"{k} {s[k]['us_per_node']}" for k in sizes)]


def _gradients(s: dict) -> list[str]:
    bad = [r for r in s["rows"] if r["dtype"] != "bfloat16" and r["relative_error"] > 1e-3]
    return [f"instance_norm gradient: worst {s['worst_fp32_fp64']}, wrong rows {len(bad)}"]


def _peer(s: dict) -> list[str]:
    return [
        f"peer b{r['batch']} {r['variant']}: {r['ms_per_step']['median']} ms, host "
        f"{r['host_ms_per_step']['median']}, busy {r['gpu_busy_ms_per_step']}, "
        f"kernels {r['kernels_per_step']}"
        for r in s.get("rows", [])
    ]


def _overlap(s: dict) -> list[str]:
    return [f"two streams N={c['N']} {c['work']}: {c['gain']}x" for c in s["cases"]]


def _convs(s: dict) -> list[str]:
    lines = []
    for r in s["rows"]:
        if "error" in r:
            lines.append(f"{r['layer']} N={r['N']}: {r['error'][:100]}")
            continue
        us = "/".join(f"{r[p]['us']['median']:.1f}" for p in ("fprop", "dgrad", "wgrad"))
        lines.append(f"{r['layer']} N={r['N']} {r['layout'][:4]}: {us} us")
    return [*lines, f"left out: {len(s['left_out'])}"]


def _sbrcs(s: dict) -> list[str]:
    lines = []
    for r in s.get("rows", []):
        us = r.get("us", {}).get("cudnn graph", {}).get("median")
        state = f"{us} us" if us else r.get("error", "?")[:90]
        lines.append(f"cudnn {r['pattern']} {r['dtype']} N={r['N']}: {state}")
    return lines


def _flat(s: dict) -> list[str]:
    rows = [f"N={r['N']} {r['kernel']}: {r['us']['median']:.1f} us" for r in s["rows"]]
    return [*rows, *(f"failed {k}: {v[:90]}" for k, v in s["failed"].items())]


def _norms(s: dict) -> list[str]:
    lines = []
    for r in s["rows"]:
        if "error" in r:
            lines.append(f"{r['op']} N={r['N']}: {r['error'][:120]}")
            continue
        fwd = r["us"]["fwd"]["median"]
        lines.append(f"{r['op']} N={r['N']} {r['layout']}: fwd {fwd:.1f}, bwd {r['bwd_us']:.1f} us")
    return lines


_WRITERS = {
    "ceilings": _ceilings,
    "graph_nodes": _nodes,
    "norm_gradients": _gradients,
    "peer_step": _peer,
    "overlap": _overlap,
    "convs_first": _convs,
    "convs_rest": _convs,
    "sbrcs": _sbrcs,
    "flat_conv": _flat,
    "norm_times": _norms,
}
