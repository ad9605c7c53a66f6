"""Part tests: the machine, its ceilings, every test marked cuda, and a look at memory accesses.

A GPU context that one test has spoiled must not fail the next: each file of tests has a process of
its own, each test function of a large file too, and each dtype of the largest. Several are run at
once: most of the time goes into compiling for one core.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.gpu_suite.cases import ROOT, Case, Plan, Result
from bench.gpu_suite.processes import python, run_pytest

LANES = 5
# Files whose functions are run one by one, and functions whose dtypes are.
SPLIT = ("test_op_contract.py",)
LARGEST = "test_matches_the_reference_in_fp64"
DTYPES = ("bfloat16", "float32", "float16", "float64")
# What compute-sanitizer looks at of them; of the largest one dtype.
WATCHED = ("memory", "empty", f"{LARGEST} float32")
# What has never been seen elsewhere comes first: the step as a graph, whole runs.
FIRST = ("capture", "dcgan_step", "gate", "feed", "train", "resume", "train_dcgan", "distributed")
FIRST += ("out_of_memory", "fused_networks", "twins")
SANITIZER = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck")
REHEARSED = "tests/test_philox.py"


def cases(plan: Plan) -> Sequence[Case]:
    """Environment and ceilings, then tests, then compute-sanitizer where it is installed."""
    first = [
        Case("environment", partial(environment, plan), 5, alone=True),
        Case("ceilings", partial(ceilings, plan), 5, alone=True),
    ]
    if plan.rehearse:
        words = ["-m", "not slow", REHEARSED]
        return [*first, Case(REHEARSED, partial(run_pytest, words), 5)]
    tests = [
        Case(name, partial(run_pytest, ["-m", "cuda", *words]), 20, limit=300, turn=_turn(name))
        for name, words in selections()
    ]
    return [*first, *tests, *_sanitized()]


def _turn(name: str) -> int:
    stem = Path(name.partition("::")[0]).stem.removeprefix("test_")
    return FIRST.index(stem) if stem in FIRST else len(FIRST)


def selections() -> Iterator[tuple[str, list[str]]]:
    """Of each case of tests, the name and what pytest is told."""
    for name in marked():
        if name.endswith(f"::{LARGEST}"):
            # "float16" is in the name of bfloat16 as well
            yield from ((f"{name} {x}", [name, "-k", f"torch.{x}-"]) for x in DTYPES)
        else:
            yield name, [name]


def environment(plan: Plan) -> Result:
    """What the doctor says."""
    words = ["-m", "fastcyclegan.doctor", "--json"]
    done = python(words + ["--device", "cpu"] * plan.rehearse)
    try:
        return {"doctor": json.loads(done.stdout)}
    except ValueError:
        raise RuntimeError(f"the doctor ended with {done.returncode}: {done.stderr}") from None


def ceilings(plan: Plan) -> Result:
    """Copy bandwidth and matrix rate."""
    import torch

    from bench.probes.ceilings import ceilings
    from bench.probes.timing import Budget

    device = torch.device("cpu" if plan.rehearse else "cuda")
    return ceilings(device, Budget(60), plan.rehearse)


def marked(folder: Path = ROOT / "tests") -> Iterator[str]:
    """The test files with tests marked cuda, or the functions of a file in SPLIT, for pytest."""
    for path in sorted(folder.glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = f"{folder.name}/{path.name}"
        if path.name in SPLIT:
            tests = (x for x in tree.body if isinstance(x, ast.FunctionDef))
            yield from (f"{place}::{x.name}" for x in tests if any(map(_marks, x.decorator_list)))
        elif _marks(tree):
            yield place


def _marks(tree: ast.AST) -> bool:
    """Whether the mark, or what the tests call it by, is used in there."""
    return any(
        isinstance(node, ast.Attribute | ast.Name)
        and ast.unparse(node) in ("pytest.mark.cuda", "on_devices")
        for node in ast.walk(tree)
    )


def sanitizer() -> str | None:
    """compute-sanitizer, on the PATH or beside the CUDA compiler."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(SANITIZER) or shutil.which(SANITIZER, path=f"{home}/bin")


def _sanitized() -> Iterator[Case]:
    program = sanitizer()
    watched = [
        (name, words)
        for name, words in selections()
        if any(word in name.partition("::")[2] for word in WATCHED)
    ]
    for tool in TOOLS if program else ():
        before = [program, "--tool", tool, "--error-exitcode", "1"]
        # Each tensor in an allocation of its own, or the allocator's cache hides what is beyond.
        own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        for name, words in watched:
            run = partial(run_pytest, ["-m", "cuda", *words], own, before)
            yield Case(f"{tool} {name}", run, 30, limit=240, turn=len(FIRST) + 1)


def lines(results: Mapping[str, Result]) -> list[str]:
    """Ceilings, counts of each case, and the first line of every failure."""
    found = []
    if "ceilings" in results:
        rate = results["ceilings"]
        copy, matmul = rate["copy_GB_per_s"], rate["matmul_TFLOP_per_s"]
        found.append(f"copy {copy['median']} GB/s, matmul bf16 {matmul['median']} TFLOP/s")
    found += [f"doctor: {line}" for line in _doctor(results.get("environment", {}))]
    counts = {name: r for name, r in results.items() if "passed" in r}
    for name, r in counts.items():
        found.append(
            f"{name:72} {r['passed']:4} passed {r['failed']:3} failed {r['skipped']:3} skipped"
        )
        found += [f"    {f['test']}: {_last_line(f['text'])}" for f in r["failures"]]
    if not any(name.startswith(TOOLS) for name in counts):
        found.append(f"{SANITIZER}: did not run" + ("" if sanitizer() else ", it is not installed"))
    return found


def _doctor(result: Result) -> Iterator[str]:
    """What the doctor does not find well."""
    for item in result.get("doctor", {}).get("items", ()):
        if item["verdict"] != "ok":
            yield f"{item['name']}: {item['verdict']}, {item['found']}"


def _last_line(text: str) -> str:
    told = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
    return (told[-1] if told else "")[:160]
