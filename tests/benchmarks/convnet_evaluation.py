"""What is gained in all: accuracy, and throughput of training and inference, of ConvNets that were grown and pruned along a partition.

    python -m tests.benchmarks.convnet_evaluation [--found FILE] [--json] [--only KEY=VALUE ...] [--seconds 2.5] [--profile]
        [--picture FILE]

``--found`` is what `tests.benchmarks.convnet_recipe --save` wrote: networks found for 2, 4 and 8 parts, and the dense start network, with
their test accuracies. Without it, networks of the same units and as many crossing ones, drawn at random, are timed, and no accuracy is
given: the time does not depend on which units cross.

Four sides are compared with the dense start network on one worker, made of torch's own layers: ``data``, the dense start network under
data parallelism; ``found``, a found network under the strategy ``model``, its units divided; ``found`` on one worker, as a whole; and
``found-data``, the found network under data parallelism: what it gains by being smaller, without its partition. One and two workers of
one core each are *measured*, all sides of a network in turns in one run: a ratio is that of the medians, its range that of slowest
rounds against fastest. Four and eight are *simulated* by the cost model, on workers as the measured ones and on presets.

``--only`` may be repeated; its keys are network, what (training, inference), side (data, found-data, found), workers, machine (here,
workers, or the name of a preset), and those of every benchmark, with the density that is aimed at; a row has the one that was found.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import torch

from grow.axes import IntArray
from grow.network import Network
from grow.topology import Topology
from hardware.cache import obtain
from hardware.calibrate.cases import part_of
from hardware.cost import predict
from hardware.devices import discover
from hardware.execute.measure import Job, Throughput, measure_throughput
from hardware.partition import Partition, communication_volume, crossing_share
from hardware.presets import preset
from hardware.profile import Profile
from hardware.profile.measurements import MeasuredLink
from hardware.shard import ChooseKernel, by_density
from hardware.workload import Workload
from search.definition import StudyReference
from tests.benchmarks import rows
from tests.benchmarks.convnet_recipe import STUDY, Aim, joins_hidden, say

NETWORKS = {"lenet-5": Aim("lenet-5", 2, 0.5, 0.125), "convnet-64-128-256": Aim("convnet-64-128-256", 2, 0.375, 0.125)}
"""What was aimed at with every start network."""
WHATS = ("training", "inference")
MEASURED = (("data", 2), ("found", 1), ("found-data", 2), ("found", 2))
"""Sides and workers that are timed."""
SIMULATED = (("workers", 4), ("workers", 8), ("pcie-4", 4), ("nvlink-8", 8))
"""Machines and devices that are simulated."""
BATCH, TIMED_RATE, MOMENTUM = 128, 1e-4, 0.9
DENSE = "dense nn modules on 1 worker"


@dataclass(frozen=True)
class Structure:
    """Parts of all hidden units, and per space the pairs of a unit and another part that reads it; empty is the dense start network."""

    network: str
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    read: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)

    def built(self) -> Network:
        """A network with this structure."""
        torch.manual_seed(0)
        definition = StudyReference(STUDY).load()
        network = Network(definition.network(self.network)(), definition.example())
        for space, parts in self.parts.items():
            network.remove_units(space, np.arange(len(parts), network.topology.units[space]))
        topology, index = network.topology, {}
        for layer in topology.layers if self.parts else ():
            if not joins_hidden(topology, layer):
                continue
            source, target = layer.source[0], np.array(self.parts[layer.target_space or ""])
            allowed = target[:, None] == np.array(self.parts[source.space])  # (O, U)
            for unit, part in self.read[source.space]:
                allowed[target == part, unit] = True
            entries = np.repeat(allowed, source.repeat, 1)  # (O, I)
            taps = entries.reshape(*entries.shape, *[1] * (len(layer.shape) - 2))
            if not entries.all():
                index[layer.layer] = np.flatnonzero(np.broadcast_to(taps, layer.shape))
        network.set_connections(index)
        return network

    @property
    def partition(self) -> Partition | None:
        """Units by their parts."""
        if not self.parts:
            return None
        return Partition({space: np.array(parts) for space, parts in self.parts.items()}, 1 + max(map(max, self.parts.values())))


def planted(aim: Aim) -> Structure:
    """The structure that the recipe aims at, with crossing units drawn at random."""
    definition, generator = StudyReference(STUDY).load(), np.random.default_rng(0)
    topology = Network(definition.network(aim.network)(), definition.example()).topology
    parts = {space: part_of(units, aim.parts) for space, units in aim.units(topology).items()}
    read = {}
    for space, labels in parts.items():
        pairs = np.argwhere(labels[:, None] != np.arange(aim.parts))
        chosen = generator.choice(len(pairs), max(1, round(aim.crossing * len(pairs))), replace=False)
        hidden = any(joins_hidden(topology, layer) and layer.source[0].space == space for layer in topology.layers)
        read[space] = pairs[np.sort(chosen)].tolist() if hidden else []
    return Structure(aim.network, {space: labels.tolist() for space, labels in parts.items()}, read)


@dataclass(frozen=True)
class Side:
    """What is timed; ``text`` is what every rank makes it from."""

    structure: Structure
    strategy: str
    workers: int
    inference: bool
    plain: bool = False

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> Side:
        """From JSON."""
        values = json.loads(text)
        return Side(Structure(**values.pop("structure")), **values)


def timed_job(text: str) -> Job:
    """A side with random images, for the clock."""
    side, generator = Side.of(text), torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, *StudyReference(STUDY).load().example().shape[1:], generator=generator)
    targets = torch.randint(0, 10, (BATCH,), generator=generator)
    network = StudyReference(STUDY).load().network(side.structure.network)() if side.plain else side.structure.built()
    partition = side.structure.partition if side.strategy == "model" else None
    parts: Mapping[str, IntArray] | None = None if partition is None else partition.parts
    return Job(
        network, side.strategy, side.workers, inputs, targets, parts, learning_rate=TIMED_RATE, momentum=MOMENTUM, inference=side.inference
    )


@dataclass(frozen=True)
class Case:
    """One row."""

    network: str
    what: str
    side: str
    workers: int
    machine: str = "here"

    @property
    def device(self) -> str:
        """The kind that computes, or is simulated to."""
        return "cpu" if self.machine in ("here", "workers") else preset(self.machine).devices[0].kind

    @property
    def told(self) -> dict[str, Any]:
        """The case by which ``--only`` chooses."""
        aim, topology = NETWORKS[self.network], start(self.network)
        possible, remote = aim.connections(topology)
        density = 1.0 if self.side == "data" else (possible - (1 - aim.crossing) * remote) / topology.possible
        units = max(space.units for space in topology.hidden)
        return {**asdict(self), "word": self.word, "units": units, "batch": BATCH, "density": density, "device": self.device}

    @property
    def word(self) -> str:
        """Whether a clock or the cost model tells."""
        return "measured" if self.machine == "here" else "simulated"


@cache
def start(network: str) -> Topology:
    """Of a dense start network."""
    return Structure(network).built().topology


def cases() -> Iterator[Case]:
    """All of them."""
    for network in NETWORKS:
        for what in WHATS:
            yield from (Case(network, what, side, workers) for side, workers in MEASURED)
            yield from (Case(network, what, side, count, machine) for machine, count in SIMULATED for side in ("data", "found"))


class Findings:
    """Networks and accuracies that the recipe found, by network and parts; parts 1 is the dense start network."""

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.lines = lines

    def of(self, network: str, parts: int) -> list[Mapping[str, Any]]:
        """Every seed's, in the order of the seeds."""
        return sorted((line for line in self.lines if (line["network"], line["parts"]) == (network, parts)), key=lambda line: line["seed"])

    def structure(self, network: str, parts: int) -> Structure:
        """What was found from the first seed, or else what was aimed at."""
        found = self.of(network, parts)
        return Structure(network, **found[0]["structure"]) if found else planted(replace(NETWORKS[network], parts=parts))

    def accuracy(self, network: str, parts: int) -> dict[str, Any]:
        """Test accuracies of both sides, and the difference in points over the seeds that both have."""
        ours, dense = ({line["seed"]: line["test"] for line in self.of(network, count)} for count in (parts, 1))
        seeds = sorted(ours.keys() & dense.keys())
        if not seeds:
            return {}
        differences = [ours[seed] - dense[seed] for seed in seeds]
        return {
            "accuracy": mean(ours[seed] for seed in seeds),
            "dense_accuracy": mean(dense[seed] for seed in seeds),
            "accuracy_difference": mean(differences),
            "accuracy_difference_min": min(differences),
            "accuracy_difference_max": max(differences),
            "seeds": len(seeds),
        }


def described(case: Case, findings: Findings) -> dict[str, Any]:
    """A row's case: what was compared, what the found network is, and how accurate."""
    found = case.told
    if case.side != "data":
        parts = max(2, case.workers)  # on one worker the network of two parts
        structure = findings.structure(case.network, parts)
        network, partition = structure.built(), structure.partition
        work = Workload.of(network.topology)
        assert partition is not None
        found |= {
            "parts": parts,
            "density": network.topology.connections / start(case.network).possible,
            "crossing": min(crossing_share(work, partition).values()),
            "communication_volume": communication_volume(work, partition),
            **findings.accuracy(case.network, parts),
        }
    return found


def row(case: Case, findings: Findings, ratio: float, low: float, high: float, samples_per_s: float) -> dict[str, Any]:
    """One row of the result."""
    machine = {"here": DENSE, "workers": "dense on 1 such worker"}.get(case.machine, f"dense on 1 GPU of {case.machine}")
    described_case = {**described(case, findings), "samples_per_s": samples_per_s}
    return rows.row("convnet_evaluation", described_case, machine, [low, ratio, high])


# ---- by the clock ----


def side_of(case: Case, findings: Findings) -> Side:
    """What runs."""
    structure = Structure(case.network) if case.side == "data" else findings.structure(case.network, 2)
    strategy = "single" if case.workers == 1 else "model" if case.side == "found" else "data"
    return Side(structure, strategy, case.workers, case.what == "inference")


def measured(chosen: Sequence[Case], findings: Findings, seconds: float, choose: ChooseKernel) -> Iterator[dict[str, Any]]:
    """Rows of the sides of one network, timed in turns with the dense one."""
    dense = Side(Structure(chosen[0].network), "single", 1, chosen[0].what == "inference", plain=True)
    sides = [dense, *(side_of(case, findings) for case in chosen)]
    found = measure_throughput(
        timed_job, [s.text for s in sides], ranks=max(s.workers for s in sides), seconds_per_job=seconds, choose=choose, timeout_s=None
    )
    say(f"{chosen[0].network}, {chosen[0].what}: dense on 1 worker {found[0].samples_per_s:,.0f} samples/s")
    for case, ours in zip(chosen, found[1:], strict=True):
        yield row(case, findings, *_ratios(ours, found[0]), ours.samples_per_s)


def _ratios(ours: Throughput, dense: Throughput) -> tuple[float, float, float]:
    return (
        ours.samples_per_s / dense.samples_per_s,
        ours.lowest_samples_per_s / dense.highest_samples_per_s,
        ours.highest_samples_per_s / dense.lowest_samples_per_s,
    )


# ---- by the cost model ----


def widened(profile: Profile, count: int) -> Profile:
    """A host of more such workers, every two of them joined by the slowest of the measured links."""
    slowest = max(profile.links, key=lambda link: link.latency_s + 1e6 / link.bandwidth_bytes_per_s)
    devices = tuple(replace(profile.devices[0], index=place, id=f"{profile.devices[0].id} of {count}, {place}") for place in range(count))
    links = (MeasuredLink(a, b, slowest.latency_s, slowest.bandwidth_bytes_per_s, slowest.medium) for a, b in combinations(range(count), 2))
    return replace(profile, key=f"{profile.key} widened to {count}", devices=devices, links=tuple(links))


def simulated(case: Case, findings: Findings, here: Profile) -> dict[str, Any]:
    """Throughput by the cost model, against dense on one device of the same machine."""
    profile = widened(here, case.workers) if case.machine == "workers" else preset(case.machine)
    inference = case.what == "inference"
    start = Workload.of_network(Structure(case.network).built())
    dense = predict(start, "single", None, profile, BATCH, inference=inference)
    if case.side == "data":
        ours = predict(start, "data", None, profile, BATCH, case.workers, inference=inference)
    else:
        structure = findings.structure(case.network, case.workers)
        ours = predict(Workload.of_network(structure.built()), "model", structure.partition, profile, BATCH, inference=inference)
    ratio = ours.samples_per_s / dense.samples_per_s
    return row(case, findings, ratio, ratio, ratio, ours.samples_per_s)


# ---- the picture ----

WIDTH, HEIGHT, LEFT, TOP, FLOOR = 860, 230, 60, 46, 196
COLORS = {"data": "#9aa5b1", "found-data": "#8bc1e8", "found": "#0b6fb8"}
NAMES = {"data": "dense, data parallel", "found-data": "found, data parallel", "found": "found along the partition"}
INK = "#333333"


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of bars: a panel a network and what it does; measured ones filled, those simulated on such workers in outline."""
    shown = [r for r in rows if r["case"]["machine"] in ("here", "workers")]
    panels = [(network, what) for network in NETWORKS for what in WHATS if any(_panel(r) == (network, what) for r in shown)]
    wide = (WIDTH - LEFT) / max(1, len(panels))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" fill="{INK}">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="8" y="14">throughput against the dense start network on 1 worker</text>',
        f'<text x="{WIDTH - 105}" y="14">outline: simulated</text>',
    ]
    for place, (side, name) in enumerate(NAMES.items()):
        at = 300 + 135 * place
        parts.append(f'<rect x="{at}" y="5" width="10" height="10" fill="{COLORS[side]}"/><text x="{at + 14}" y="14">{name}</text>')
    for number, panel in enumerate(panels):
        parts += _bars([r for r in shown if _panel(r) == panel], LEFT / 2 + number * wide, wide - 24, f"{panel[0]}, {panel[1]}")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["case"]["network"], found["case"]["what"]


def _bars(rows: Sequence[Mapping[str, Any]], left: float, wide: float, title: str) -> list[str]:
    most = max(r["ratio"] for r in rows)
    keys = sorted({(r["case"]["workers"], r["case"]["side"]) for r in rows})
    step = wide / max(1, len(keys))
    parts = [f'<text x="{left:.0f}" y="{TOP - 12}" font-weight="bold">{title}</text>']
    parts.append(f'<path d="M{left:.0f},{FLOOR}H{left + wide:.0f}" stroke="{INK}"/>')
    for found in rows:
        workers, side = found["case"]["workers"], found["case"]["side"]
        x, tall = left + keys.index((workers, side)) * step + 2, found["ratio"] / most * (FLOOR - TOP - 14)
        fill = COLORS[side] if found["case"]["word"] == "measured" else "white"
        parts += [
            f'<rect x="{x:.1f}" y="{FLOOR - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" fill="{fill}" stroke="{COLORS[side]}"/>',
            f'<text x="{x + step / 2 - 2:.1f}" y="{FLOOR - tall - 3:.1f}" text-anchor="middle">{found["ratio"]:.1f}</text>',
        ]
    for workers in sorted({workers for workers, _ in keys}):
        places = [place for place, key in enumerate(keys) if key[0] == workers]
        middle = left + (mean(places) + 0.5) * step
        parts.append(f'<text x="{middle:.1f}" y="{FLOOR + 14}" text-anchor="middle">{workers}</text>')
    parts.append(f'<text x="{left + wide / 2:.1f}" y="{FLOOR + 28}" text-anchor="middle">workers</text>')
    return parts


# ---- on the command line ----


def selected(only: Sequence[str]) -> list[Case]:
    """The cases that have all the values asked for."""
    every = list(cases())
    left = rows.selected([case.told for case in every], only)
    return [case for case in every if case.told in left]


def evaluated(chosen: Sequence[Case], findings: Findings, seconds: float, profiled: bool) -> list[dict[str, Any]]:
    """All rows: the clock's first."""
    found: list[dict[str, Any]] = []
    elsewhere = [case for case in chosen if case.machine != "here"]
    here = obtain(discover("cpu", 2).devices, progress=say) if profiled or any(case.machine == "workers" for case in elsewhere) else None
    for key in dict.fromkeys((case.network, case.what) for case in chosen if case.machine == "here"):
        some = [case for case in chosen if (case.network, case.what) == key and case.machine == "here"]
        found += measured(some, findings, seconds, here.kernel if profiled and here is not None else by_density)
    for case in elsewhere:
        found.append(simulated(case, findings, here if here is not None else preset(case.machine)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--found", type=Path, help="what convnet_recipe wrote")
    parser.add_argument("--seconds", type=float, default=2.5, help="of timed steps, for each side")
    parser.add_argument("--profile", action="store_true", help="let the profile of these devices choose the kernels")
    parser.add_argument("--picture", type=Path, help="write an SVG there")
    rows.add_options(parser)
    given = parser.parse_args(arguments)
    chosen = selected(given.only)
    torch.set_num_threads(1)
    lines = [] if given.found is None else [json.loads(line) for line in given.found.read_text(encoding="utf-8").splitlines()]
    found = evaluated(chosen, Findings(lines), given.seconds, given.profile)
    if given.picture is not None:
        given.picture.write_text(picture(found), encoding="utf-8")
    if given.json:
        rows.write(found, True)
        return
    shown = ("ratio", "ratio_min", "ratio_max")
    table = pd.DataFrame([{**one["case"], **{key: one[key] for key in shown}} for one in found])
    sys.stdout.write(table.round(3).to_string(index=False) + "\n")
    sys.stdout.write(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread a worker\n")


if __name__ == "__main__":
    from tests.benchmarks.convnet_evaluation import main as importable  # ranks find `timed_job` by its name, where this is no main

    importable()
