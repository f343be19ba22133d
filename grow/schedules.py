"""A schedule is a function of the step: a density, a number of connections or of units, a share.

Outside [begin, end] it keeps the value of the nearer end. Densities and sparsities follow the same cubic: it is affine in its
values, so 1 - cubic(s) = cubic(1 - s).
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


def one_shot(start_value: float, end_value: float, at: int) -> Schedule:
    """All at once: ``start_value`` before step ``at``, ``end_value`` from there on.

    >>> [one_shot(1.0, 0.1, 5)(step) for step in (4, 5)]
    [1.0, 0.1]
    """
    return lambda step: end_value if step >= at else start_value


def iterative(start_value: float, end_value: float, begin: int, end: int, rounds: int) -> Schedule:
    """Prune the same share of what remains, retrain, repeat: after round r of n, start (end / start)^(r / n).

    The first round is at ``begin``, the last one at ``end``, the others evenly between (Han et al. 2015, arXiv 1506.02626; Frankle and
    Carbin 2018, arXiv 1803.03635). Only for what shrinks: ValueError if ``end_value`` is above ``start_value``.

    >>> [round(iterative(1.0, 0.512, 10, 30, 3)(step), 3) for step in (9, 10, 19, 20, 30)]
    [1.0, 0.8, 0.8, 0.64, 0.512]
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1; one round is one_shot")
    _check_shrinking("iterative", start_value, end_value)
    _check_order(begin, end)

    def value(step: int) -> float:
        if step < begin:
            return start_value
        done = rounds if step >= end else 1 + (step - begin) * (rounds - 1) // (end - begin)
        return _geometric(start_value, end_value, done / rounds)

    return value


def continuous(start_value: float, end_value: float, begin: int, end: int) -> Schedule:
    """The same small share of what remains at every step: start (end / start)^((t - begin) / (end - begin)).

    Only for what shrinks: ValueError if ``end_value`` is above ``start_value``.

    >>> round(continuous(1.0, 0.01, 0, 100)(50), 6)
    0.1
    """
    _check_shrinking("continuous", start_value, end_value)
    remaining = _remaining(begin, end)
    return lambda step: _geometric(start_value, end_value, 1 - remaining(step))


def cyclic(low: float, high: float, begin: int, end: int, cycles: int) -> Schedule:
    """Grow, then prune, ``cycles`` times: ``high`` up to ``begin``, then in turn half a cycle ``low`` and half a cycle ``high``.

    The last half cycle before ``end`` is ``high`` and what follows is ``low``, so that the network is trained as it ends.
    With ``high`` the dense network this is AC/DC (Peste et al. 2021, arXiv 2106.12379): dense warm-up up to
    ``begin``, the last sparse phase from ``end``.

    >>> [cyclic(0.1, 1.0, 10, 50, 2)(step) for step in (0, 10, 20, 30, 40, 50, 99)]
    [1.0, 0.1, 1.0, 0.1, 1.0, 0.1, 0.1]
    """
    if cycles < 1:
        raise ValueError(f"cycles is {cycles}, but must be at least 1; without cycles this is one_shot")
    if low > high:
        raise ValueError(f"low is {low}, but must be at most high, {high}; exchange them")
    _check_order(begin, end)

    def value(step: int) -> float:
        if step < begin:
            return high
        half_cycle = 2 * cycles if step >= end else (step - begin) * 2 * cycles // (end - begin)
        return low if half_cycle % 2 == 0 else high

    return value


def _geometric(start_value: float, end_value: float, done: float) -> float:
    """``start_value`` where nothing is done, exactly ``end_value`` where all is."""
    return float(end_value) if done >= 1 else float(start_value * (end_value / start_value) ** done)


def _check_order(begin: int, end: int) -> None:
    if end < begin:
        raise ValueError(f"end is {end}, but must be at least begin, {begin}; exchange them")


def _check_shrinking(name: str, start_value: float, end_value: float) -> None:
    if not 0 < end_value <= start_value:
        raise ValueError(
            f"end_value is {end_value}, but must be above 0 and at most start_value, {start_value}: "
            f"{name} only prunes; grow with linear or cubic"
        )


def warm_cosine(peak: float, rise: int, end: int) -> Schedule:
    """A linear rise to ``peak`` over ``rise`` steps, then half a cosine down to zero at ``end``.

    A learning rate (Loshchilov and Hutter 2017, arXiv 1608.03983).

    >>> [round(warm_cosine(0.4, 2, 6)(step), 3) for step in (0, 1, 2, 4, 6)]
    [0.2, 0.4, 0.4, 0.2, 0.0]
    """
    if rise < 1:
        raise ValueError(f"rise is {rise}, but must be at least 1")

    def rate(step: int) -> float:
        if step < rise:
            return peak * (step + 1) / rise
        return peak * (1 + cos(pi * (step - rise) / max(1, end - rise))) / 2

    return rate


def _remaining(begin: int, end: int) -> Callable[[int], float]:
    """Share of the way from ``begin`` to ``end`` that is still to go: 1 up to ``begin``, 0 from ``end`` on."""
    _check_order(begin, end)

    def remaining(step: int) -> float:
        if step >= end:
            return 0.0
        return 1.0 if step <= begin else (end - step) / (end - begin)

    return remaining
