"""What does a block-sparse layer cost against a dense one on a GPU's tensor cores?

    python -m tests.benchmarks.sparse_layer_gpu [--json] [--only KEY=VALUE ...] [--rounds 20]

One layer of 8,192 units, batch 4,096: forward, both gradients and a step of SGD with momentum. Its connections are whole blocks, drawn
at random. Dense is torch.nn.Linear, that is cuBLAS, with the same optimizer. bf16: weights and values in bfloat16; tf32: float32 whose
products round to tf32 on both sides. Timed by CUDA events in turns. A ratio is one round's; above 1 ours is faster. Without a GPU
there is nothing to measure: exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from statistics import median

import numpy as np
import torch
from torch import nn

from grow.layers import SparseLinear
from tests.benchmarks.rows import Case, add_options, row, selected, write
from tests.benchmarks.sparse_layer import Step, step_of

UNITS, BATCH = 8192, 4096
CASES: list[Case] = [
    {"units": UNITS, "batch": BATCH, "density": density, "block": block, "dtype": dtype, "device": "cuda"}
    for dtype, block, density in product(("bf16", "tf32"), (32, 64), (0.05, 0.1))
]


def block_sparse(case: Case, dtype: torch.dtype) -> nn.Module:
    """The project's layer, with whole blocks of connections."""
    units, size = int(case["units"]), int(case["block"])
    across = units // size
    blocks = np.zeros((across, across), bool)
    blocks.flat[np.random.default_rng(0).choice(across**2, round(float(case["density"]) * across**2), replace=False)] = True
    index = np.flatnonzero(np.kron(blocks, np.ones((size, size), bool)))
    layer = SparseLinear(torch.empty(0, dtype=dtype), nn.Parameter(torch.zeros(units, dtype=dtype)))
    values = torch.randn(len(index)).to(dtype) / (float(case["density"]) * units) ** 0.5
    layer.restructure((units, units), index, f"block_{size}", nn.Parameter(values))
    return layer.to(str(case["device"]))


def milliseconds(step: Step, repeats: int = 10) -> float:
    """Of one step on the device, as the mean over several."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(repeats):
        step()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / repeats


def measured(case: Case, rounds: int) -> dict[str, object]:
    """The row of a case."""
    dtype = torch.bfloat16 if case["dtype"] == "bf16" else torch.float32
    torch.set_float32_matmul_precision("high")  # tf32
    layers = {"dense": nn.Linear(int(case["units"]), int(case["units"]), device="cuda", dtype=dtype), "ours": block_sparse(case, dtype)}
    size = int(case["units"]), int(case["batch"])
    steps = {name: step_of(layer, *size, "cuda", dtype) for name, layer in layers.items()}
    for step in steps.values():  # compiles and warms up
        milliseconds(step)
    times = [{name: milliseconds(step) for name, step in steps.items()} for _ in range(rounds)]
    medians = {f"{name}_ms": median(turn[name] for turn in times) for name in steps}
    against = f"cuBLAS on {torch.cuda.get_device_name()}"
    return row("sparse_layer_gpu", case, against, [turn["dense"] / turn["ours"] for turn in times], **medians)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    add_options(parser)
    arguments = parser.parse_args()
    cases = selected(CASES, arguments.only)
    if not torch.cuda.is_available():
        sys.stderr.write(
            "device is cpu, but must be a CUDA GPU, which this machine or this build of torch has not; run it where there is one\n"
        )
        return 2
    write([measured(case, arguments.rounds) for case in cases], arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
