"""A schedule is a function of the step. Outside [begin, end] it keeps the value of the nearer end.

Densities and sparsities follow the same cubic: it is affine in its values, so 1 - cubic(s) = cubic(1 - s).
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same value at every step.

    >>> constant(0.3)(1000)
    0.3
    """
    return lambda step: value


def linear(start_value: float, end_value: float, begin: int, end: int) -> Schedule:
    """A straight line from ``start_value`` at ``begin`` to ``end_value`` at ``end``.

    >>> linear(1.0, 0.0, 0, 4)(1)
    0.75
    """
    remaining = _remaining(begin, end)
    return lambda step: end_value + (start_value - end_value) * remaining(step)


def cubic(start_value: float, end_value: float, begin: int, end: int) -> Schedule:
    """Fast at first, then ever slower, from ``start_value`` at ``begin`` to ``end_value`` at ``end``.

    Zhu and Gupta 2017, arXiv 1710.01878: s(t) = s_f + (s_i - s_f) (1 - (t - begin) / (end - begin))^3.

    >>> round(cubic(1.0, 0.1, 0, 100)(50), 6)
    0.2125
    """
    remaining = _remaining(begin, end)
    return lambda step: end_value + (start_value - end_value) * remaining(step) ** 3


def cosine(start_value: float, end: int) -> Schedule:
    """Half a cosine from ``start_value`` at step 0 to 0 at ``end``: the drop fraction of RigL (Evci et al. 2019, arXiv 1911.11134).

    >>> round(cosine(0.3, 100)(25), 6)
    0.256066
    """
    if end < 1:
        raise ValueError(f"end is {end}, but must be at least 1; pass the step from which nothing is dropped any more")
    return lambda step: 0.0 if step >= end else start_value / 2 * (1 + cos(pi * max(step, 0) / end))


def _remaining(begin: int, end: int) -> Callable[[int], float]:
    """Share of the way from ``begin`` to ``end`` that is still to go: 1 up to ``begin``, 0 from ``end`` on."""
    if end < begin:
        raise ValueError(f"end is {end}, but must be at least begin, {begin}; exchange them")

    def remaining(step: int) -> float:
        if step >= end:
            return 0.0
        return 1.0 if step <= begin else (end - step) / (end - begin)

    return remaining
