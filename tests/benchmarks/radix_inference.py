"""Inference of deep RadiX-Nets as in the Sparse DNN Graph Challenge, against scipy.sparse with one thread.

    python -m tests.benchmarks.radix_inference [--data-dir DIR] [--repeats 3] [--reference-rows 1000] [--json]
        [--only units=4096 --only batch=2000]

1,024 or 4,096 neurons x 120 layers, 32 connections a neuron, weights 1/16, bias -0.30 / -0.35, ReLU capped at 32 (Kepner et al. 2019,
1909.05631). The first radix system stands as it is, the nodes before every other one are permuted at random; the compiled stack
computes the nodes of a place, which read the same sources, four at a time, and does not profit from the equal weights. Inputs are MNIST
digits, scaled bilinearly to 32 x 32 or 64 x 64 and thresholded at one half: 60,000 of them (the bundled sample has 10,000), 10,000 with
4,096 neurons, of which a layer's activations would else take a gigabyte. scipy multiplies sparse rows by sparse layers, as the
challenge's reference does, so that it drops what is zero; it takes turns with ours on the first ``--reference-rows`` digits, since all
would take minutes. A rate is digits x connections / time. Categories are the digits with any activation after the last layer; scipy
goes through all digits once, after the turns, to compare them: with the smaller batch of each network within a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch.nn import functional

from grow.axes import IntArray
from grow.kernels.stack import StackLayer, alive_after
from grow.seeds.radix import radix_matrices
from studies.datasets import mnist
from tests.benchmarks.rows import Case, Value, add_options, row, selected, write

CASES: list[Case] = [
    {"units": units, "layers": 120, "batch": batch, "density": 32 / units, "device": "cpu"}
    for units, batch in ((1024, 10_000), (1024, 60_000), (4096, 2_000), (4096, 10_000))
]
BIASES = {1024: -0.30, 4096: -0.35}
WEIGHT, CAP, WIDTH = 1 / 16, 32.0, 16
SOME = 1000
"""Digits that scipy goes through at a time, so that their activations fit into memory."""


def matrices(units: int, layers: int) -> list[csr_array]:
    """Adjacency of every layer, sources along axis 0."""
    system = [2] * round(np.log2(units / WIDTH))
    rest = layers // len(system) - 1
    drawn = radix_matrices([system] * rest, [WIDTH] * (rest * len(system) + 1), np.random.default_rng(0))
    return radix_matrices([system], [WIDTH] * (len(system) + 1)) + drawn


def digits(data_dir: Path | None, units: int, count: int) -> csr_array:
    """Rows of zeros and ones, (count, units)."""
    split, side = mnist.read(mnist.find(data_dir)), round(units**0.5)
    images = np.concatenate([split.training.images, split.validation.images])[:count]
    rows = []
    for some in np.array_split(images, -(-len(images) // 5000)):
        scaled = functional.interpolate(
            torch.from_numpy(some)[:, None].float() / 255, size=(side, side), mode="bilinear", align_corners=False
        )
        rows.append(csr_array((scaled.flatten(1) > 0.5).float().numpy()))
    return csr_array(vstack(rows))


def reference(layers: list[csr_array], bias: float, inputs: csr_array) -> IntArray:
    """Categories by scipy.sparse."""
    y = inputs
    for layer in layers:
        y = y @ layer
        y.data += np.float32(bias)  # where there is anything at all: the bias is negative, the ReLU would take it away elsewhere
        y.data[y.data < 0] = 0
        y.eliminate_zeros()
        np.minimum(y.data, np.float32(CAP), out=y.data)
    return np.flatnonzero(np.diff(y.indptr))


def measured(case: Case, inputs: csr_array, repeats: int, reference_rows: int) -> dict[str, object]:
    """Ratios of the rates, turn by turn, and whether the categories are the same."""
    units, bias = int(case["units"]), BIASES[int(case["units"])]
    found = matrices(units, int(case["layers"]))
    theirs = [csr_array(matrix, dtype=np.float32) * np.float32(WEIGHT) for matrix in found]
    ours = [StackLayer.of(csr_array(matrix.T) * np.float32(WEIGHT), bias, CAP) for matrix in found]
    some, edges = inputs[:reference_rows], sum(matrix.nnz for matrix in found)
    alive_after(ours[:1], inputs[:1])  # compiles
    rates: dict[str, list[float]] = {"stack": [], "scipy": []}
    for _ in range(repeats):
        start = perf_counter()
        categories, _ = alive_after(ours, inputs)
        rates["stack"].append(inputs.shape[0] * edges / (perf_counter() - start))
        start = perf_counter()
        reference(theirs, bias, some)
        rates["scipy"].append(some.shape[0] * edges / (perf_counter() - start))
    starts = range(0, inputs.shape[0], SOME)
    expected = np.concatenate([start + reference(theirs, bias, inputs[start : start + SOME]) for start in starts])
    same = np.array_equal(categories, expected)
    ratios = [one / other for one, other in zip(rates["stack"], rates["scipy"], strict=True)]
    told: dict[str, Value] = {f"{name}_edges_per_s": median(some) for name, some in rates.items()}
    more: dict[str, Value] = {"categories": len(categories), "same_categories": str(same), "timed_rows": some.shape[0]}
    return row("radix_inference", {**case, "batch": inputs.shape[0]}, "scipy.sparse, 1 thread", ratios, **told, **more)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-rows", type=int, default=1000)
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = selected(CASES, arguments.only)
    rows = []
    for case in cases:
        inputs = digits(arguments.data_dir, int(case["units"]), int(case["batch"]))
        rows.append(measured(case, inputs, arguments.repeats, arguments.reference_rows))
    write(rows, arguments.json)


if __name__ == "__main__":
    main()
