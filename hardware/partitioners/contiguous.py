"""Neighbouring units together. Needs no solver; the yardstick for the others."""

from __future__ import annotations

from hardware.partition import Partition
from hardware.partitioners.base import check, contiguous_parts
from hardware.partitioners.local_search import FloatArray
from hardware.workload import Workload


def contiguous(work: Workload, parts: int, imbalance: float = 0.05, seed: int = 0, costs: FloatArray | None = None) -> Partition:
    """Every hidden space in ``parts`` blocks of about the same weight. ``imbalance``, ``seed`` and ``costs`` change nothing."""
    check(work, parts, imbalance, costs)
    return Partition({space: contiguous_parts(work.weights[space], parts) for space in work.hidden}, parts)
