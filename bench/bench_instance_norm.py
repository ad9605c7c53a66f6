"""Instance norm with its activation, residual and padding: kernels against PyTorch.

    pytest bench/bench_instance_norm.py --benchmark-only
    python -m bench.bench_instance_norm OUT.json [--quick] [--providers NAME ...] [--commit HASH]

The second writes one row per case, provider and mode: us of graph replays (median, 10th and 90th
percentile), GB/s of the bytes that the fused kernels must move, that as a fraction of the copy
bandwidth measured in the same run, and the largest relative error against fp64.
"""

from bench.norm_cases import CASES, LARGE, RESIDUAL, SMALL, TRUNK, WIDE, Run, counted_bytes
from bench.op_bench import OpBench

OP = OpBench("instance_norm", Run, counted_bytes, CASES, SMALL, is_norm=True)


@OP.parametrize
def bench_instance_norm(benchmark, row) -> None:
    OP.bench(benchmark, row)


if __name__ == "__main__":
    OP.main(quick=[*TRUNK, RESIDUAL[1], WIDE[1], LARGE[0]])
