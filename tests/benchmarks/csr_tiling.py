"""What tiling the batch gains the csr kernel: `grow.kernels.csr.TILE` samples at a time against all at once.

    python -m tests.benchmarks.csr_tiling [--always] [--repeats 5] [--only density=0.01] [--json]

Forward pass and both gradients of one sparse layer through autograd, float32, one thread; the two take turns. Features of less than
`grow.kernels.csr.TILED_BYTES` are not divided; with ``--always`` they are, which is how that bound was found.
"""

from __future__ import annotations

import argparse
from time import perf_counter
from unittest.mock import patch

import numpy as np
import torch

from grow.kernels import csr
from tests.benchmarks.rows import Case, add_options, row, selected, write

CASES: list[Case] = [
    {"units": units, "batch": batch, "density": density, "device": "cpu"}
    for units in (1024, 2048, 4096)
    for batch in (1024, 2048, 4096)
    for density in (0.01, 0.05)
]


def ratios(case: Case, repeats: int, always: bool) -> list[float]:
    """Seconds of a step with all samples at once over those with tiles, turn by turn."""
    units, batch = int(case["units"]), int(case["batch"])
    index = np.random.default_rng(0).choice(units**2, round(float(case["density"]) * units**2), replace=False)
    positions = torch.from_numpy(np.sort(index))
    product, values = csr.prepare(positions, (units, units)), torch.randn(len(positions), requires_grad=True)
    x, upstream = torch.randn(units, batch).t().requires_grad_(), torch.randn(units, batch).t()

    def seconds(tile: int) -> float:
        with patch.object(csr, "TILE", tile), patch.object(csr, "TILED_BYTES", 0 if always else csr.TILED_BYTES):
            start = perf_counter()
            product(x, values, None).backward(upstream)
            return perf_counter() - start

    seconds(csr.TILE)
    turns = [(seconds(csr.TILE), seconds(batch)) for _ in range(repeats)]
    return [whole / tiled for tiled, whole in turns]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--always", action="store_true", help="by tiles, however small the features are")
    parser.add_argument("--repeats", type=int, default=5)
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = selected(CASES, arguments.only)
    write(
        [row("csr_tiling", case, "csr on all samples at once", ratios(case, arguments.repeats, arguments.always)) for case in cases],
        arguments.json,
    )


if __name__ == "__main__":
    main()
