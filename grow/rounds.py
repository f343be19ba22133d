"""Pruning in many rounds, each with evidence of what is left: what SynFlow needs."""

from __future__ import annotations

from math import ceil, log


def exponential(start: int, end: int, rounds: int) -> list[int]:
    """Connections left after every round: each round keeps the same share, start * (end / start)^(r / rounds).

    >>> exponential(1000, 1, 3)
    [100, 10, 1]
    """
    if not 0 < end <= start:
        raise ValueError(f"end is {end}, but must be between 1 and start, {start}")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    return [round(start * (end / start) ** (number / rounds)) for number in range(1, rounds + 1)]


def rounds_needed(start: int, end: int, share: float) -> int:
    """The fewest rounds of which none takes more than ``share`` of what it finds.

    >>> rounds_needed(1000, 10, 0.045), rounds_needed(1000, 10, 1.0), rounds_needed(1000, 990, 0.045)
    (101, 1, 1)
    """
    return 1 if share >= 1 or end >= start else max(1, ceil(log(end / start) / log(1 - share)))
