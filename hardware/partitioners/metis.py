"""Graph partitioning with METIS: fewest connections cut, which is not the same as the smallest communication volume.

Karypis and Kumar, SIAM J. Sci. Comput. 1998. METIS knows no fixed vertices. The earlier parts are heavy anchors here, each as
heavy as all units of a part together, so that balance puts one into every part; the parts are then named after their anchors.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array

from hardware.partition import Partition
from hardware.partitioners.base import Problem, divided
from hardware.partitioners.local_search import FloatArray
from hardware.workload import IntArray, Workload


def metis(work: Workload, parts: int, imbalance: float = 0.05, seed: int = 0, costs: FloatArray | None = None) -> Partition:
    """From the fewest cut connections that METIS finds in every hidden space. ValueError where pymetis is not installed."""
    return divided(work, parts, imbalance, seed, costs, solve)


def solve(problem: Problem) -> IntArray:
    """Divide one space."""
    try:
        import pymetis
    except ImportError:
        raise ValueError("partitioner is 'metis', but must be installed; pip install pymetis, or use 'mtkahypar' or 'contiguous'") from None
    count, anchors = len(problem.weights), _anchors(problem)
    graph = _graph(problem)
    weights = np.concatenate(
        [
            problem.weights,
            np.full(anchors, max(1, problem.weights.sum() // problem.parts)),
            np.zeros(graph.shape[0] - count - anchors, np.int64),
        ]
    )
    allowed = max(1, round(1000 * problem.imbalance / (2 if anchors else 1)))  # an anchor doubles the weight
    found = pymetis.part_graph(
        problem.parts,
        pymetis.CSRAdjacency(graph.indptr, graph.indices),
        vweights=weights,
        eweights=graph.data,
        recursive=False,
        options=pymetis.Options(seed=problem.seed, ufactor=allowed),
    )
    parts = np.array(found.vertex_part, np.int64)
    return _named(parts, count, anchors) if anchors else parts[:count]


def _graph(problem: Problem) -> csr_array:
    """Symmetric graph: units, one anchor per part, and the readers ahead, which weigh nothing."""
    count = len(problem.weights)
    rows, columns, size = [], [], count + _anchors(problem)
    for nets in problem.behind:
        rows.append(nets.units)
        columns.append(count + nets.part[nets.ids])
    for nets in problem.ahead:
        rows.append(nets.units)
        columns.append(size + nets.ids)
        size += len(nets.part)
    row, column = np.concatenate(rows), np.concatenate(columns)
    both = (np.concatenate([row, column]), np.concatenate([column, row]))
    graph = coo_array((np.ones(len(both[0]), np.int64), both), shape=(size, size)).tocsr()
    graph.sum_duplicates()
    return graph


def _anchors(problem: Problem) -> int:
    return problem.parts if problem.behind else 0


def _named(found: IntArray, count: int, parts: int) -> IntArray:
    """Parts renamed so that each has the name of its anchor; where two anchors share a part, the best assignment."""
    anchors = np.zeros((parts, parts), np.int64)
    np.add.at(anchors, (found[count : count + parts], np.arange(parts)), 1)
    from scipy.optimize import linear_sum_assignment  # slow to import

    names = linear_sum_assignment(-anchors)[1]
    return np.asarray(names, np.int64)[found[:count]]
