"""Splicing: connections that were pruned too early come back with the weight that they had (Guo, Yao, Chen 2016, arXiv 1608.04493).

In the paper all weights train on, the pruned ones as well, and a mask with hysteresis hides those that are small. Here only what was
pruned is remembered, and its weights are moved by gradients that are gathered when needed, in blocks, not at every step.

Legend: N remembered connections of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.carry import moved_positions
from grow.evidence import Evidence
from grow.network import Network
from grow.patterns import Choice
from grow.topology import Topology

FALL, RISE = 0.9, 1.1
"""Shares of the threshold below which a connection goes and above which it comes back."""


def thresholds(network: Network, c: float) -> dict[str, float]:
    """Per layer max(mean + c * deviation, 0) of |w| over its weights and biases that are not zero; meant to be taken once, at the start."""
    found = {}
    for name, layer in network.layers.items():
        values = torch.cat([p.detach().flatten().double() for p in (layer.weight, layer.bias) if p is not None])
        sizes = values[values != 0].abs()
        mean = float(sizes.mean()) if len(sizes) else 0.0
        deviation = max(0.0, float((sizes**2).mean()) - mean**2) ** 0.5 if len(sizes) else 0.0
        found[name] = max(mean + c * deviation, 0.0)
    return found


class Splice:
    """What was pruned of a network: sorted positions (N,) and weights (N,) by layer.

    `Network.remember` lets it follow edits of units; what is grown again is forgotten.
    """

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self.thresholds = dict(thresholds)
        self.held: dict[str, tuple[IntArray, Tensor]] = {}

    def falling(self, network: Network) -> Choice:
        """Existing connections with |w| <= 0.9 t."""
        return {
            layer.layer: layer.positions()[(_existing(network, layer.layer).abs() <= FALL * self.thresholds[layer.layer]).cpu().numpy()]
            for layer in network.topology.layers
        }

    def note(self, network: Network, choice: Choice) -> None:
        """Remember connections, with their weights, before they are pruned."""
        for name, positions in choice.items():
            at = np.searchsorted(network.topology.layer(name).positions(), positions)
            weights = _existing(network, name)[torch.from_numpy(at).to(network.device)]
            old, values = self.held.get(name, (np.zeros(0, np.int64), weights[:0]))
            stays = ~np.isin(old, positions)
            both = np.concatenate([old[stays], positions])
            order = np.argsort(both)
            merged = torch.cat([values[torch.from_numpy(stays)], weights])
            self.held[name] = (both[order], merged[torch.from_numpy(order)])

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

    def rising(self, network: Network) -> tuple[Choice, dict[str, Tensor]]:
        """Remembered connections with |w| > 1.1 t that do not exist, and their weights: to be given to `Network.grow_connections`."""
        self._forget_existing(network)
        choice: Choice = {}
        values: dict[str, Tensor] = {}
        for name, (positions, held) in self.held.items():
            back = held.abs() > RISE * self.thresholds[name]
            choice[name], values[name] = positions[back.cpu().numpy()], held[back]
        return choice, values

    def edited(self, before: Topology, after: Topology, moves: Mapping[str, IntArray] | None) -> None:
        """Carry the positions through an edit of units; without ``moves`` nothing is known of them, and all is forgotten."""
        if moves is None:
            self.held.clear()
            return
        for name, (positions, values) in self.held.items():
            moved = moved_positions(before, before.layer(name), after.layer(name), moves, positions)
            left = np.flatnonzero(moved >= 0)
            left = left[np.argsort(moved[left])]
            self.held[name] = (moved[left], values[torch.from_numpy(left).to(values.device)])

    def _forget_existing(self, network: Network) -> None:
        for name, (positions, values) in self.held.items():
            absent = ~np.isin(positions, network.topology.layer(name).positions())
            self.held[name] = (positions[absent], values[torch.from_numpy(absent).to(values.device)])


def _existing(network: Network, name: str) -> Tensor:
    """Weights of a layer's existing connections, in the order of their positions, (E,)."""
    layer = network.layers[name]
    weight = layer.weight.detach()
    if layer.storage == "compressed" or layer.positions is None:
        return weight.reshape(-1)
    return weight.reshape(-1)[layer.positions]
