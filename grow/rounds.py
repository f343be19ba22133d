"""Pruning in many rounds before or after training, each with evidence of what is left: what SynFlow needs."""

from __future__ import annotations

from collections.abc import Callable

from grow.criteria import Criterion
from grow.evidence import Evidence
from grow.network import Network
from grow.scoring import to_prune


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


def prune_in_rounds(
    network: Network,
    criterion: Criterion,
    connections: int,
    rounds: int,
    evidence: Callable[[], Evidence],
    frozen: frozenset[str] = frozenset(),
) -> None:
    """Prune to ``connections`` in exponential steps; ``evidence`` is gathered anew for every round.

    Tanaka, Kunin, Yamins, Ganguli 2020, arXiv 2006.05467, use 100 rounds: in a single one whole layers vanish.
    """
    for left in exponential(network.topology.connections, connections, rounds):
        excess = network.topology.connections - left
        if excess > 0:
            network.prune_connections(to_prune(network, criterion, evidence(), excess, frozen=frozen))
