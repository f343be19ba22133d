"""How much less is sent between the parts than with contiguous blocks, and how long does it take to find them?

    python -m tests.benchmarks.partition_volume [--json] [--only KEY=VALUE ...] [--partitioner NAME] [--seeds 3]

Divides the hidden units of networks of 6 x 1,024 units. ``net=random``: every unit reads 16 random ones of the space before.
``net=local``: it reads 16, 90 % of them among its 33 nearest neighbours on a ring, the others anywhere, and the units of every space
are shuffled. ``net=large``: local, with a million connections between the hidden spaces. The ratio is communication volume of
contiguous blocks over that of the partition found, at an imbalance of at most 5 % in every space, which is checked; its range is over
networks drawn from different seeds. Seconds are those of one partition, from the workload to the parts, by the clock and of
the one core that it takes. A volume is that of one sample: the batch is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from statistics import median

import numpy as np

from grow.axes import IntArray, Segment
from grow.topology import Connections, Space, Topology
from hardware.partition import communication_volume, imbalance
from hardware.partitioners import PARTITIONERS, default_partitioner
from hardware.workload import Workload
from tests.benchmarks.rows import Case, add_options, row, selected, write

SPACES, UNITS, FAN_IN = 6, 1024, 16
LARGE_UNITS = 15_000
"""Units of a space of the large network: what is drawn twice counts once, so that a million connections are left."""

NEAR, NEAR_SHARE = 16, 0.9
IMBALANCE = 0.05


CASES: list[Case] = [
    {"units": units, "batch": 1, "density": FAN_IN / units, "device": "cpu", "net": net, "parts": parts}
    for net, units, divided in (("random", UNITS, (2, 4, 8)), ("local", UNITS, (2, 4, 8)), ("large", LARGE_UNITS, (8,)))
    for parts in divided
]


def network(net: str, units: int, seed: int) -> Topology:
    """A network of the given kind with so many units in every space."""
    generator = np.random.default_rng(seed)
    draw = random_sources if net == "random" else local_sources
    places = [generator.permutation(units) if net != "random" else np.arange(units) for _ in range(SPACES)]
    sizes = [16, *[units] * SPACES, 10]
    roles = ("input", *("hidden",) * SPACES, "output")
    spaces = tuple(Space(f"s{n}", size, role) for n, (size, role) in enumerate(zip(sizes, roles, strict=True)))  # type: ignore[arg-type]
    layers = []
    for number in range(1, len(sizes)):
        shape, index = (sizes[number], sizes[number - 1]), None
        if 1 < number <= SPACES:
            rows, columns = draw(generator, units)
            index = np.unique(places[number - 1][rows] * units + places[number - 2][columns])
        layers.append(Connections(f"fc{number}", shape, (Segment(f"s{number}"),), (Segment(f"s{number - 1}"),), index))
    return Topology(spaces, tuple(layers))


def random_sources(generator: np.random.Generator, units: int) -> tuple[IntArray, IntArray]:
    """Target and source of every connection: as many different random sources for each."""
    columns = np.stack([generator.choice(units, FAN_IN, replace=False) for _ in range(units)])
    return np.repeat(np.arange(units), FAN_IN), columns.ravel()


def local_sources(generator: np.random.Generator, units: int) -> tuple[IntArray, IntArray]:
    """Target and source of every connection: most sources among the nearest neighbours on a ring."""
    rows = np.repeat(np.arange(units), FAN_IN)
    near = (rows + generator.integers(-NEAR, NEAR + 1, len(rows))) % units
    return rows, np.where(generator.random(len(rows)) < NEAR_SHARE, near, generator.integers(0, units, len(rows)))


def outcomes(case: Case, partitioner: str, seeds: int) -> Iterator[dict[str, float]]:
    """Volumes, worst imbalance of a space, and seconds, for each seed."""
    net, parts = str(case["net"]), int(case["parts"])
    for seed in range(1 if net == "large" else seeds):
        work = Workload.of(network(net, int(case["units"]), seed))
        before, worked = time.perf_counter(), time.process_time()
        found = PARTITIONERS[partitioner](work, parts, IMBALANCE, seed)
        seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - worked
        worst = max(imbalance(work, found, space) for space in work.hidden)
        if worst > IMBALANCE + 1e-9:  # a load just at the limit
            raise SystemExit(f"imbalance is {worst:.3f}, but must be at most {IMBALANCE}; the ratio would not count")
        blocks = PARTITIONERS["contiguous"](work, parts)
        yield {
            "blocks": communication_volume(work, blocks),
            "found": communication_volume(work, found),
            "imbalance": worst,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "connections": sum(layer.connections for layer in work.layers if layer.target in work.hidden[1:]),
        }


def measured(case: Case, partitioner: str, seeds: int) -> dict[str, object]:
    """The row of a case."""
    sys.stderr.write(f"{case['net']}, {case['parts']} parts\n")
    found = list(outcomes(case, partitioner, seeds))
    ratios = [seed["blocks"] / seed["found"] for seed in found]
    return row(
        "partition_volume",
        {**case, "partitioner": partitioner, "seeds": len(found)},
        "contiguous blocks",
        ratios,
        connections=median(seed["connections"] for seed in found),
        volume=median(seed["found"] for seed in found),
        volume_saved=1 - 1 / median(ratios),
        imbalance=max(seed["imbalance"] for seed in found),
        seconds=max(seed["seconds"] for seed in found),
        cpu_seconds=max(seed["cpu_seconds"] for seed in found),
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--partitioner", choices=list(PARTITIONERS), default=default_partitioner())
    parser.add_argument("--seeds", type=int, default=3)
    add_options(parser)
    arguments = parser.parse_args()
    cases = selected(CASES, arguments.only)
    write([measured(case, arguments.partitioner, arguments.seeds) for case in cases], arguments.json)


if __name__ == "__main__":
    main()
