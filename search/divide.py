"""How the units of a training are divided among its ranks, after every edit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from grow.axes import IntArray
from grow.network import Network
from grow.topology import Topology
from hardware.partitioners import PARTITIONERS
from hardware.profile import Profile
from hardware.workload import Workload
from search import build
from search.recipe import Recipe


class Divider:
    """Along the parts that the network grows along, where these are as many as there are ranks.

    For another number of ranks, parts of their own: divided by the recipe's partitioner at first, and then, since they follow every
    edit, moved only as far as balance demands or as it pays, by what the ``profile`` says that the links between the ranks cost. Such
    parts decide where a unit is computed, not what is grown or pruned.
    """

    def __init__(self, network: Network, recipe: Recipe, ranks: int, profile: Profile | None = None) -> None:
        self._recipe, self._ranks = recipe, ranks
        self._costs = None if profile is None or ranks > len(profile.devices) else build.link_costs(profile, ranks)
        self._parts: dict[str, IntArray] | None = None
        network.remember(self)

    def __call__(self, network: Network) -> Mapping[str, IntArray] | None:
        """The part of every unit, None where one rank has them all."""
        if self._ranks == 1:
            return None
        if network.parts is not None and self._recipe.devices == self._ranks:
            return network.parts
        work, recipe = Workload.of(network.topology), self._recipe
        if self._parts is None:
            found = PARTITIONERS[recipe.partitioner](work, self._ranks, recipe.imbalance, recipe.seed, self._costs)
        else:
            found = build.repartitioned(recipe, work, self._parts, self._ranks, self._costs)
        self._parts = dict(found.parts)
        return found.parts

    def edited(self, before: Topology, after: Topology, moves: Mapping[str, IntArray] | None) -> None:
        """An edit has been carried out: survivors keep their part, new units have none yet. See `grow.follow.Record`."""
        if moves is None or self._parts is None:
            self._parts = None
            return
        followed = {}
        for space in after.hidden:
            old = self._parts.get(space.name, np.zeros(0, np.int64))
            moved = moves.get(space.name, np.arange(space.units) if len(old) == space.units else np.full(space.units, -1))
            followed[space.name] = np.where(moved < 0, -1, old[np.maximum(moved, 0)]) if len(old) else np.full(space.units, -1)
        self._parts = followed
