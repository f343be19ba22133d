"""Hypergraph partitioning with Mt-KaHyPar: fewest copies of units on remote parts.

Gottesbueren et al., Scalable Shared-Memory Hypergraph Partitioning, ALENEX 2021; the hypergraph model of a network is that of
Demirci and Ferhatosmanoglu, ICS 2021. The net of a source unit has its readers and, fixed, the part of the unit itself, so that
its connectivity minus one is the number of copies sent. Only the DETERMINISTIC preset repeats itself for a seed.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from hardware.partition import Partition
from hardware.partitioners.base import Nets, Problem, divided
from hardware.partitioners.local_search import FloatArray
from hardware.partitioners.metis import solve as solve_by_metis
from hardware.workload import IntArray, Workload

if TYPE_CHECKING:
    from mtkahypar import Initializer

PINS = 2**17
"""Pins of one space times parts beyond which METIS takes its place where it is installed: Mt-KaHyPar takes seconds for so many on one
thread, and what it gains after the local search is 1 % at 8 parts, though 5 % at 2."""

BEHIND = 4
"""How much more a copy behind the space counts, which is certain, than one ahead, which the next space may still avoid."""

UNIT = 64
"""Weight factor of units: the solver does not end on weightless fixed vertices, so each part's anchor weighs 1, units much more."""


def mtkahypar(work: Workload, parts: int, imbalance: float = 0.05, seed: int = 0, costs: FloatArray | None = None) -> Partition:
    """From the smallest communication volume that Mt-KaHyPar finds in every hidden space. ValueError where it is not installed."""
    return divided(work, parts, imbalance, seed, costs, _solve)


@cache
def _solver() -> Initializer:
    try:
        import mtkahypar
    except ImportError:
        raise ValueError(
            "partitioner is 'mtkahypar', but must be installed; pip install mtkahypar, or use 'metis' or 'contiguous'"
        ) from None
    return mtkahypar.initialize(1, False)  # once per process; without warnings, one thread


def _solve(problem: Problem) -> IntArray:
    solver = _solver()
    if problem.parts * sum(len(nets.ids) for nets in problem.behind + problem.ahead) > PINS and find_spec("pymetis") is not None:
        return solve_by_metis(problem)
    import mtkahypar

    context = solver.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(problem.parts, problem.imbalance, mtkahypar.Objective.KM1)
    context.logging = False
    mtkahypar.set_seed(problem.seed)
    count = len(problem.weights)
    pins: list[list[int]] = []
    costs: list[int] = []
    for factor, found in ((BEHIND, problem.behind), (1, problem.ahead)):
        for nets in found:
            listed, values = _pins(nets, count)
            pins += listed
            costs += (factor * values).tolist()
    if not pins:
        return np.arange(count) * problem.parts // count
    weights = [*(problem.weights * UNIT).tolist(), *[1] * problem.parts]
    graph = solver.create_hypergraph(context, len(weights), len(pins), pins, weights, costs)
    graph.add_fixed_vertices([-1] * count + list(range(problem.parts)), problem.parts)
    return np.array(graph.partition(context).get_partition()[:count], np.int64)


def _pins(nets: Nets, count: int) -> tuple[list[list[int]], IntArray]:
    """Pins of every net that can be saved, with the anchor of its source's part behind the units; and the nets' values."""
    if not len(nets.ids):
        return [], np.zeros(0, np.int64)
    order = np.argsort(nets.ids, kind="stable")
    chosen, starts = np.unique(nets.ids[order], return_index=True)
    listed, kept_nets = [], []
    for net, members in zip(chosen.tolist(), np.split(nets.units[order], starts[1:]), strict=True):
        anchor = [count + int(nets.part[net])] if nets.part[net] >= 0 else []
        if len(members) < count and len(members) + len(anchor) > 1:
            listed.append([*members.tolist(), *anchor])
            kept_nets.append(net)
    return listed, nets.values[kept_nets]
