"""Part ladder: probes, then every way to do one CycleGAN step, one lever after the other.

A lever is a line of ROWS: an option of the train command, or a field of :class:`Row`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from bench.gpu_suite.cases import ROOT, Case, Plan, Result
from bench.gpu_suite.steps import step_cases, table
from bench.jz import checkout
from bench.probes.__main__ import PROBES
from bench.probes.__main__ import main as probe
from bench.step_rows import Row, Size

BF16 = {"precision": "bf16"}
COMPILED = BF16 | {"compile": True}
CAPTURED = COMPILED | {"cuda_graph": "on"}
REFERENCE = {"impl": "reference"}
# cudnn.benchmark is on in the baselines, as their users have it.
ROWS = [
    Row("junyanz, fp32 with TF32 convolutions", peer={}, benchmark=True),
    Row("junyanz, autocast bf16", peer={"autocast": True}, benchmark=True),
    Row(
        "junyanz, autocast bf16, channels_last",
        peer={"autocast": True, "channels_last": True},
        benchmark=True,
    ),
    Row("reference fp32", REFERENCE, benchmark=True),
    Row("reference tf32", REFERENCE | {"precision": "tf32"}, benchmark=True),
    Row("reference, autocast bf16, channels_last", REFERENCE, autocast=True, benchmark=True),
    Row(
        "reference, autocast bf16, torch.compile",
        REFERENCE,
        autocast=True,
        mode="default",
        benchmark=True,
    ),
    Row("fused tf32, references for kernels", {"precision": "tf32"}, kernels=False),
    Row("fused bf16, references for kernels", BF16, kernels=False),
    Row("+ kernels", BF16),
    Row("+ compiled blocks", COMPILED),
    Row("+ one CUDA graph", CAPTURED),
    Row("  with cudnn.benchmark", CAPTURED, benchmark=True),
    Row("  with twin networks on two streams", CAPTURED | {"twin_streams": True}),
    Row("  with images drawn in each step: the full step", CAPTURED, drawn=True),
    Row("  without identity", CAPTURED | {"lambda_identity": 0.0}),
    Row("  with phases compiled whole", CAPTURED | {"compile_scope": "step"}, batches=(1, 8)),
    Row(
        "reference tf32, torch.compile",
        REFERENCE | {"precision": "tf32"},
        mode="default",
        benchmark=True,
        batches=(1, 8),
    ),
    Row(
        "reference, autocast bf16, max-autotune",
        REFERENCE,
        autocast=True,
        mode="max-autotune",
        benchmark=True,
        batches=(1, 8),
    ),
]
# What is wanted most, however far the time reaches: ours, and what it is compared with.
FIRST = (
    "  with images drawn in each step: the full step",
    "reference tf32",
    "junyanz, fp32 with TF32 convolutions",
    "+ kernels",
    "+ one CUDA graph",
    "reference, autocast bf16, torch.compile",
    "+ compiled blocks",
    "  with twin networks on two streams",
    "  with cudnn.benchmark",
    "  without identity",
    "junyanz, autocast bf16",
    "reference, autocast bf16, channels_last",
)
PAPER = Size("256 px, ngf 64, resnet_9blocks", {})
BATCHES = ((1, 8), (4, 16))
# Forward, data and weight gradients of one pair of images, with identity loss and without.
TFLOP, TFLOP_WITHOUT_IDENTITY = 1.879, 1.287
TINY = Size(
    "32 px, ngf 4, resnet_1blocks",
    {"netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "load_size": 36, "crop_size": 32},
)
REHEARSED = ("reference fp32", "reference, autocast bf16, channels_last", "+ kernels")
# SPEED's first questions come first; what is recorded of a GPU already is not asked again.
PROBED = ("norm_gradients", "ceilings", "graph_nodes", "overlap", "convs_first", "flat_conv")
PROBED += ("layouts", "norm_times", "convs_rest", "conv_kernels", "sbrcs")
ALWAYS = ("norm_gradients", "ceilings")
PROBE_SECONDS = {"convs_first": 60, "convs_rest": 60, "flat_conv": 60, "norm_times": 60}


def cases(plan: Plan) -> Sequence[Case]:
    """Probes that no accepted results have, and rows: batch 1 and 8 of all first."""
    rows = [row for row in ROWS if row.peer is None or checkout() is not None]
    if plan.rehearse:
        rows = [row for row in rows if row.name in REHEARSED]
        steps = step_cases(rows, TINY, ((1, 2),), "step")
    else:
        steps = step_cases(rows, PAPER, BATCHES, "step", _tflop, FIRST)
    return [*_probes(plan), *steps]


def _probes(plan: Plan) -> Iterator[Case]:
    known = set() if plan.rehearse else accepted_probes(_gpu())
    for name in ALWAYS if plan.rehearse else PROBED:
        if name in ALWAYS or name not in known:
            seconds, turn = PROBE_SECONDS.get(name, 10), -1 if name in ALWAYS else len(FIRST)
            yield Case(f"probe {name}", partial(_probe, name, plan), seconds, limit=150, turn=turn)


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_properties(0).name


def accepted_probes(gpu: str) -> set[str]:
    """Names of the probes that bench/results has of this GPU, without error."""
    found: set[str] = set()
    for path in ROOT.glob("bench/results/*/probes*.json"):
        sections = json.loads(path.read_text(encoding="utf-8"))
        if sections["machine"].get("gpu") == gpu:
            done = {k: v for k, v in sections.items() if isinstance(v, dict)}
            found |= {k for k, v in done.items() if not {"error", "skipped"} & v.keys()}
    return found


def _probe(name: str, plan: Plan) -> Result:
    """Into probes.json, beside what is there; what it says in a line or two."""
    from bench.probes.summary import summary

    words = [str(plan.out), "--only", name, "--budget", "140"]
    words += ["--dry-run"] * plan.rehearse + ["--commit", plan.commit] * (plan.commit is not None)
    code = probe(words)
    section = json.loads((plan.out / "probes.json").read_text(encoding="utf-8"))[name]
    failed = [section["error"]] if "error" in section else [f"exit code {code}"] * bool(code)
    result: Result = {"said": summary({name: section}).splitlines(), "failures": failed}
    if name == "ceilings" and not failed:
        result["matmul_TFLOP_per_s"] = section["matmul_TFLOP_per_s"]["median"]
    return result


def lines(results: Mapping[str, Result]) -> list[str]:
    """What the probes said, then the ladder."""
    said = [line for r in results.values() for line in r.get("said", ())[:8]]
    matmul = results.get("probe ceilings", {}).get("matmul_TFLOP_per_s")
    return said + table(ROWS, results, matmul)


def _tflop(row: Row) -> float:
    return TFLOP if row.options.get("lambda_identity", 0.5) else TFLOP_WITHOUT_IDENTITY


assert set(PROBED) <= set(PROBES) and set(FIRST) <= {row.name for row in ROWS}
