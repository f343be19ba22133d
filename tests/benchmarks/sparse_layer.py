"""What does a sparse layer cost against a dense one?

    python -m tests.benchmarks.sparse_layer [--json] [--only KEY=VALUE ...] [--rounds 7]

One layer with as many inputs as outputs: forward, both gradients and a step of SGD with momentum, through autograd, on one thread. Its
connections are drawn at random. Inputs and what flows back are row-major, as a dense layer wants them. Ours is the layer of the
project with the kernel that the profile of this machine names for this case, as everywhere: measured now where the cache has none. Against

    dense        torch.nn.Linear and the same optimizer
    csr          torch's own CSR tensors under torch's autograd, same connections, same optimizer: what one writes without the project;
                 most of its time is its backward, where the gradient of the weight is a dense product
    csr-kernel   the project's kernel csr, the same library's products with the transpose prepared once: what the chosen kernel itself wins
    sparseprop   SparseProp (Nikdan et al. 2023), same connections, same optimizer; where it is installed

All are timed in turns in one run; a turn is a step or as many as take `TURN_S`. A ratio is that of the medians, above 1 where ours is
faster; its range is that of single rounds. ``--only`` may be repeated; its keys are units, batch, density, device and against.

SparseProp builds from source and does not name what it needs for that: `pip install pybind11 setuptools`, then `pip install
--no-build-isolation sparseprop`, with a C++ compiler that finds pybind11's headers.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from grow.axes import IntArray
from grow.kernels import KERNELS, KernelCase
from grow.layers import SparseLinear
from hardware.cache import obtain
from hardware.devices import discover
from hardware.profile import Profile
from tests.benchmarks import rows

DENSITIES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.65, 0.8, 0.95, 1.0)
"""Those that a profile measures, and some between them, where it only estimates which kernel is fastest."""
SHAPES = ((1024, 128), (4096, 512))
TURN_S = 0.03
LEARNING_RATE, MOMENTUM = 1e-4, 0.9

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One layer."""

    units: int
    batch: int
    density: float
    device: str = "cpu"

    def index(self) -> IntArray:
        """Sorted flat positions of its connections."""
        possible = self.units**2
        if self.density == 1.0:
            return np.arange(possible)
        return np.sort(np.random.default_rng(0).choice(possible, round(self.density * possible), replace=False))

    def weight(self) -> Tensor:
        """Dense weight (O, I), zero where no connection is."""
        weight = torch.zeros(self.units**2)
        index = torch.from_numpy(self.index())
        weight[index] = torch.randn(len(index), generator=torch.Generator().manual_seed(0)) / (self.density * self.units) ** 0.5
        return weight.reshape(self.units, self.units)


CASES = tuple(Case(units, batch, density) for units, batch in SHAPES for density in DENSITIES)


class TorchCsr(nn.Module):
    """What torch's own sparse tensors offer."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.to_sparse_csr()
        self.starts, self.columns, self.shape = matrix.crow_indices(), matrix.col_indices(), weight.shape
        self.values = nn.Parameter(matrix.values().clone())
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        matrix = torch.sparse_csr_tensor(self.starts, self.columns, self.values, self.shape)
        return (matrix @ x.t()).t() + self.bias


def ours(case: Case, weight: Tensor, kernel: str) -> nn.Module:
    """The project's layer, computed by a kernel."""
    layer = SparseLinear(nn.Parameter(weight), nn.Parameter(torch.zeros(case.units)))
    if case.density < 1:
        index = case.index()
        values = weight.reshape(-1)[torch.from_numpy(index)] if KERNELS[kernel].storage == "compressed" else weight
        layer.restructure((case.units, case.units), index, kernel, nn.Parameter(values))
    return layer


def dense(weight: Tensor) -> nn.Module:
    """torch.nn.Linear of the same size."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def others(against: set[str], case: Case) -> dict[str, Callable[[Tensor], nn.Module]]:
    """What ours is compared with; sparse layers make no sense with all connections."""
    known: dict[str, Callable[[Tensor], nn.Module]] = {"dense": dense}
    if case.density <= 0.1:
        known["csr"] = TorchCsr
        known["csr-kernel"] = lambda weight: ours(case, weight, "csr")
        if importlib.util.find_spec("sparseprop"):
            theirs = importlib.import_module("sparseprop.modules.linear").SparseLinear
            known["sparseprop"] = lambda weight: theirs(weight, nn.Parameter(torch.zeros(weight.shape[0])))
    return {name: make for name, make in known.items() if not against or name in against}


def step_of(layer: nn.Module, units: int, batch: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Step:
    """A training step of a layer with so many inputs and outputs. ValueError for one that leaves a parameter of it as it is."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    generator = torch.Generator(device).manual_seed(1)
    x, upstream = (torch.randn(batch, units, generator=generator, device=device, dtype=dtype) for _ in range(2))
    x.requires_grad_()

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        layer(x).backward(upstream)
        optimizer.step()

    return training(layer, step)


def training(module: nn.Module, step: Step) -> Step:
    """The step, done once. ValueError where it gives a parameter no gradient: what it leaves out, others would be charged for."""
    step()
    idle = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    if idle:
        raise ValueError(
            f"gradient of {', '.join(idle)} is None, but must be there after a step; give the layer nn.Parameters that are trained"
        )
    return step


def in_turns(steps: dict[str, Step], rounds: int) -> pd.DataFrame:
    """Seconds of a step, one row a round, one column for each."""
    repeats = {}
    for name, step in steps.items():
        step()
        repeats[name] = max(1, round(TURN_S / seconds_of(step, 1)))
    return pd.DataFrame([{name: seconds_of(step, repeats[name]) for name, step in steps.items()} for _ in range(rounds)])


def seconds_of(step: Step, repeats: int) -> float:
    """Seconds of one of so many steps."""
    begun = perf_counter()
    for _ in range(repeats):
        step()
    return (perf_counter() - begun) / repeats


def compared(case: Case, against: set[str], profile: Profile, rounds: int) -> Iterator[dict[str, object]]:
    """One row of the result for everything that the case is compared with."""
    kernel = profile.kernel(KernelCase(case.units, case.units, case.density, case.batch, case.device))
    weight = case.weight()
    layers = {"ours": ours(case, weight, kernel), **{name: make(weight) for name, make in others(against, case).items()}}
    seconds = in_turns({name: step_of(layer, case.units, case.batch) for name, layer in layers.items()}, rounds)
    for name in list(layers)[1:]:
        ours_s, theirs_s = median(seconds["ours"]), median(seconds[name])
        ratios = (seconds[name] / seconds["ours"]).tolist()
        measured = {"kernel": kernel, "ours_ms": 1000 * ours_s, "theirs_ms": 1000 * theirs_s}
        yield {**rows.row("sparse_layer", asdict(case), name, ratios), "ratio": theirs_s / ours_s, **measured}


def selected(only: list[str]) -> tuple[list[Case], set[str]]:
    """The cases that agree with every KEY=VALUE, and what to compare with (all, if none is named)."""
    against = {condition.removeprefix("against=") for condition in only if condition.startswith("against=")}
    left = rows.selected(map(asdict, CASES), [condition for condition in only if not condition.startswith("against=")])
    return [case for case in CASES if asdict(case) in left], against


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rows.add_options(parser)
    arguments = parser.parse_args()
    cases, against = selected(arguments.only)
    torch.set_num_threads(1)
    profile = obtain(discover("cpu").devices, progress=lambda message: sys.stderr.write(f"{message}\n") and None)
    if not importlib.util.find_spec("sparseprop"):
        sys.stderr.write("sparseprop is not installed; the comparison with it is left out\n")
    found = [each for case in cases for each in compared(case, against, profile, arguments.rounds)]
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    table = pd.json_normalize(found).drop(columns="benchmark")
    sys.stdout.write(table.to_string(index=False, float_format=lambda value: f"{value:.3g}") + "\n")
    sys.stdout.write(f"{profile.described}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread\n")


if __name__ == "__main__":
    main()
