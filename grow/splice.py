"""Splicing: connections that were pruned too early come back with the weight that they had (Guo, Yao, Chen 2016, arXiv 1608.04493).

In the paper all weights train on, the pruned ones as well, and a mask with hysteresis hides those that are small: it falls below 0.9 t
and rises above 1.1 t, with a threshold t that is fixed at the start. Here only what was pruned is remembered, its weights are moved by
gradients that are gathered when needed, in blocks, not at every step, and the threshold is where the last pruning of the layer ended:
how many connections there are, a schedule says.

Legend: N remembered connections of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.editing.carry import moved_positions
from grow.evidence import Evidence
from grow.network import Network
from grow.patterns import Choice
from grow.topology import Topology

RISE = 1.1 / 0.9
"""How far above the threshold below which connections went a weight must be to come back, in thresholds."""


class Splice:
    """What was pruned of a network: sorted positions (N,) and weights (N,) by layer, and the largest |w| of its last pruning.

    `Network.remember` lets it follow edits of units; what is grown again is forgotten.
    """

    def __init__(self) -> None:
        self.thresholds: dict[str, float] = {}
        self.held: dict[str, tuple[IntArray, Tensor]] = {}

    def note(self, choice: Choice, pruned: Mapping[str, Tensor]) -> None:
        """Remember connections that are pruned, with the weights that they had: what `Network.prune_connections` gives."""
        for name, positions in choice.items():
            if not len(positions):
                continue
            weights = pruned[name]
            self.thresholds[name] = float(weights.abs().max())
            old, values = self.held.get(name, (np.zeros(0, np.int64), weights[:0]))
            stays = ~np.isin(old, positions)
            both = np.concatenate([old[stays], positions])
            order = np.argsort(both)
            merged = torch.cat([values[torch.from_numpy(stays).to(values.device)], weights])
            self.held[name] = (both[order], merged[torch.from_numpy(order).to(merged.device)])

    def train(self, evidence: Evidence, learning_rate: float) -> None:
        """Move the remembered weights down the gradient, as if they had been there (straight-through)."""
        for name, (positions, values) in self.held.items():
            width = prod(evidence.topology.layer(name).shape[1:])
            for block in evidence.blocks(name):
                if not len(block.rows):
                    continue
                low, high = np.searchsorted(positions, [block.rows[0] * width, (block.rows[-1] + 1) * width])
                local = torch.from_numpy(positions[low:high] - block.rows[0] * width).to(values.device)
                values[low:high] -= learning_rate * block.evidence["gradient"].reshape(-1)[local].to(values)

    def rising(self, network: Network, most: Mapping[str, int], count: int) -> tuple[Choice, dict[str, Tensor]]:
        """Remembered connections that have risen and do not exist, with their weights: to be given to `Network.grow_connections`.

        At most ``most`` of a layer and ``count`` in all, those farthest above their thresholds first; ties by layer, then by position.
        """
        self._forget_existing(network)
        ranked: list[tuple[float, int, int]] = []
        names = [name for name in self.held if most.get(name, 0) > 0]
        for number, name in enumerate(names):
            above = (self.held[name][1].abs() / max(self.thresholds[name], 1e-300)).cpu().double().numpy()
            risen = np.flatnonzero(above > RISE)
            first = risen[np.argsort(-above[risen], kind="stable")][: most[name]]
            ranked += [(-float(above[at]), number, int(at)) for at in first]
        chosen = sorted(ranked)[:count]
        choice, values = Choice(), dict[str, Tensor]()
        for number, name in enumerate(names):
            at = np.array(sorted(place for _, layer, place in chosen if layer == number), np.int64)
            positions, held = self.held[name]
            choice[name], values[name] = positions[at], held[torch.from_numpy(at).to(held.device)]
        return choice, values

    def edited(self, before: Topology, after: Topology, moves: Mapping[str, IntArray] | None) -> None:
        """Carry the positions through an edit of units; without ``moves`` nothing is known of them, and all is forgotten."""
        if moves is None:
            self.held, self.thresholds = {}, {}
            return
        carried = {}
        for name, (positions, values) in self.held.items():
            moved = moved_positions(before, before.layer(name), after.layer(name), moves, positions)
            left = np.flatnonzero(moved >= 0)
            left = left[np.argsort(moved[left])]
            carried[name] = (moved[left], values[torch.from_numpy(left).to(values.device)])
        self.held = carried

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, for a checkpoint."""
        found: dict[str, Tensor] = {}
        for name, (positions, values) in self.held.items():
            found |= {f"{name}/positions": torch.from_numpy(positions), f"{name}/weights": values}
            found[f"{name}/threshold"] = torch.tensor([self.thresholds[name]], dtype=torch.float64)
        return found

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Remember what a checkpoint holds."""
        names = [name.removesuffix("/positions") for name in tensors if name.endswith("/positions")]
        self.thresholds = {name: float(tensors[f"{name}/threshold"]) for name in names}
        self.held = {
            name: (tensors[f"{name}/positions"].cpu().numpy().copy(), tensors[f"{name}/weights"].to(device, copy=True)) for name in names
        }

    def _forget_existing(self, network: Network) -> None:
        for name, (positions, values) in self.held.items():
            absent = ~np.isin(positions, network.topology.layer(name).positions())
            self.held[name] = (positions[absent], values[torch.from_numpy(absent).to(values.device)])
