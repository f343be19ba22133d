"""Where training starts: the dense topology and a density -> units and connections, one family of seeds a file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from grow.seeds.dense import dense
from grow.seeds.erdos_renyi import erdos_renyi, erk
from grow.seeds.expander import expander
from grow.seeds.minimal import minimal
from grow.seeds.radixnet import radixnet, radixnet_permuted
from grow.seeds.structure import Seed, Structure

__all__ = ["SEEDS", "Seed", "Structure", "seed"]

SEEDS: Mapping[str, Seed] = {
    "dense": dense,
    "erk": erk,
    "erdos_renyi": erdos_renyi,
    "expander": expander,
    "radixnet": radixnet,
    "radixnet_permuted": radixnet_permuted,
    "minimal": minimal,
}
"""The seeds that a recipe may name."""


def seed(name: str) -> Seed:
    """The seed of that name; ValueError names the ones that exist."""
    if name in SEEDS:
        return SEEDS[name]
    remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, SEEDS, 1))
    raise ValueError(f"seed is {name!r}, but must be one of {', '.join(SEEDS)}{remedy}")
