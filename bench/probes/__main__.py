"""First measurements on a GPU: ceilings, a peer's step, convolutions, graphs, streams and norms.

    python -m bench.probes OUT_DIR [--only NAME ...] [--budget SECONDS] [--commit HASH]

Writes OUT_DIR/probes.json (a `machine` block and one section per probe) after every probe. A probe
that fails leaves its error text in its section; the rest go on. With --only the other sections of
a probes.json that is there stay: a failed capture spoils its process, so that risky probes are run
on their own. `--dry-run` walks through the probes on a CPU at toy sizes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch

from bench.probes import ceilings, convs, graphs, norms, peer, sbrcs
from bench.probes.summary import summary
from bench.probes.timing import Budget, free_memory


def _flat_conv(*args, **kwargs) -> dict:
    """Imported when it runs: without triton only this probe fails."""
    from bench.probes.flat_conv import flat_conv

    return flat_conv(*args, **kwargs)


PROBES = {
    "ceilings": ceilings.ceilings,
    "graph_nodes": graphs.graph_nodes,
    "norm_gradients": norms.norm_gradients,
    "layouts": norms.layouts,
    "overlap": graphs.overlap,
    "convs_first": convs.convs_first,
    "convs_rest": convs.convs_rest,
    "peer_step": peer.peer_step,
    "conv_kernels": convs.conv_kernels,
    "sbrcs": sbrcs.sbrcs,
    "flat_conv": _flat_conv,
    "norm_times": norms.norm_times,
}
MIN_SECONDS = 10


def _command(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), None)


def _source_digest() -> str:
    """sha256 over the probes' own files: names the code where there is no commit to name."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def machine(device: torch.device, commit: str | None) -> dict:
    """What the figures were taken on: GPU, driver, CPU, versions, commit and date."""
    block = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit or _command("git", "rev-parse", "HEAD"),
        "probes_sha256": _source_digest(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    try:
        import triton

        block["triton"] = triton.__version__
    except ImportError:
        block["triton"] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        block |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "L2_MiB": round(properties.L2_cache_size / 2**20),
            "cuda": torch.version.cuda,
        }
        query = "--query-gpu=driver_version,power.limit,clocks.max.sm,clocks.max.mem"
        block["driver, power limit, max clocks"] = _command(
            "nvidia-smi", query, "--format=csv,noheader"
        )
    return block


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.probes", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--only", nargs="+", choices=PROBES, metavar="NAME")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all probes together")
    parser.add_argument("--commit", help="recorded where the tree has no git history")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU")
    return parser.parse_args(argv)


def _run_probe(name: str, device, budget: Budget, tiny: bool, results: dict) -> dict:
    if budget.left() < MIN_SECONDS:
        return {"skipped": "out of time"}
    extra = {}
    if name in ("convs_first", "convs_rest"):
        rate = results.get("ceilings", {}).get("matmul_TFLOP_per_s", {})
        extra = {"ceiling": rate.get("median")}
    start = budget.used()
    try:
        section = PROBES[name](device, budget, tiny, **extra)
    except Exception:
        section = {"error": traceback.format_exc(limit=-4)}
    section["seconds"] = round(budget.used() - start, 1)
    return section


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print("error: no CUDA device; these probes measure a GPU (--dry-run: CPU)", file=sys.stderr)
        return 2
    device = torch.device("cpu" if args.dry_run else "cuda")
    torch.backends.cudnn.benchmark = True
    args.out_dir.mkdir(parents=True, exist_ok=True)
    budget = Budget(args.budget)
    path = args.out_dir / "probes.json"
    results = json.loads(path.read_text()) if args.only and path.is_file() else {}
    head = {"machine": machine(device, args.commit)}
    head |= {"rehearsal": True} if args.dry_run else {}
    results = head | results
    for name in args.only or PROBES:
        torch.manual_seed(0)
        results[name] = _run_probe(name, device, budget, args.dry_run, results)
        state = "error" if "error" in results[name] else results[name].get("skipped", "done")
        print(f"{budget.used():6.1f} s  {name}: {state}", flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        try:
            free_memory(device)
        except RuntimeError as error:
            print(f"error: the device failed after {name}: {error}", file=sys.stderr)
            return 1
    print(summary({name: results[name] for name in args.only or PROBES}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
