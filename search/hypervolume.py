"""How much of the plane of accuracy and throughput a front covers: one number for the quality of a search.

Both objectives are maximised. Accuracy is a share, so that a hypervolume is in samples/s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]
"""Accuracy and throughput."""


def hypervolumes(points: Iterable[Point | None], reference: Point) -> list[float]:
    """The hypervolume after each of some points; None: one that does not count.

    >>> hypervolumes([(0.9, 10.0), None, (0.8, 20.0)], reference=(0.5, 0.0))
    [4.0, 4.0, 7.0]
    """
    so_far: list[Point] = []
    found = []
    for point in points:
        so_far += [] if point is None else [point]
        found.append(hypervolume(so_far, reference))
    return found


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Area of all that is beyond the reference in both objectives and that some point equals or beats (Zitzler, Thiele 1998).

    >>> hypervolume([(0.9, 10.0), (0.8, 20.0), (0.7, 15.0)], reference=(0.5, 0.0))  # 0.4 x 10 + 0.3 x 10
    7.0
    """
    area, covered = 0.0, reference[1]
    for accuracy, throughput in sorted(points, reverse=True):
        if accuracy > reference[0] and throughput > covered:
            area += (accuracy - reference[0]) * (throughput - covered)
            covered = throughput
    return area
