"""The part of a network that one rank holds and computes, under a strategy: a layout of every space.

``whole``: all units of all samples. ``batch``: all units of the rank's own samples. ``units``: the rank's own units of all samples.
A value is in the layout of its units until a layer reads it for another one, and moves then (`hardware.transitions` has the table,
`hardware.execute.moves` the moves); loss, gradients and weights are those of one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch

from grow.axes import IntArray
from grow.network import Network
from hardware import layout
from hardware.execute.exchange import Peers
from hardware.layout import Strategy
from hardware.shard.build import Builder
from hardware.shard.held import Held
from hardware.shard.layers import ChooseKernel, by_density
from hardware.shard.local import Loss, Shard
from hardware.workload import Workload

__all__ = ["ChooseKernel", "Held", "Loss", "Shard", "StrategyName", "by_density", "shard"]

StrategyName: TypeAlias = str | Strategy
"""The name of a strategy (`hardware.layout.STRATEGIES`), or a layout for every space."""


def shard(
    network: Network,
    strategy: StrategyName,
    peers: Peers,
    *,
    parts: Mapping[str, IntArray] | None = None,
    batch: int = 256,
    choose: ChooseKernel = by_density,
    device: torch.device | None = None,
    seed: int = 0,
    overlap: bool | None = None,
) -> Shard:
    """The local module of one rank.

    strategy: its name or a layout of every space. ``parts`` gives the part of every unit of the spaces that are ``units``; a part may be
    empty. ``choose`` picks the kernel of each local layer anew. ``seed`` is dropout's, the same on every rank. The network itself is only
    read, and shares no tensor. ValueError names what the strategy cannot divide.

    overlap: whether layers compute while their halo is under way; by default on GPUs.
    """
    complete = {layer.layer: None for layer in network.topology.layers}  # what may be divided does not depend on single connections
    work = Workload.of(network.topology.with_index(complete))
    layouts = layout.strategy(work, strategy) if isinstance(strategy, str) else dict(strategy)
    layout.check(work, layouts)
    if peers.count == 1:
        layouts = dict.fromkeys(layouts, "whole")
    elif set(layouts.values()) == {"whole"}:
        raise ValueError(f"strategy is 'single' with {peers.count} ranks, but must have 1; use 'data' or 'model'")
    divided = _checked_parts(network, layouts, parts, peers.count)
    device = device or network.device
    overlapping = device.type == "cuda" if overlap is None else overlap
    return Builder(network, layouts, divided, peers, batch, choose, device, seed, overlapping).build()


def _checked_parts(network: Network, layouts: Strategy, parts: Mapping[str, IntArray] | None, count: int) -> dict[str, IntArray]:
    """A part for every unit of the spaces that are ``units``, or ValueError."""
    found: dict[str, IntArray] = {}
    for space, units in network.topology.units.items():
        if layouts[space] != "units":
            continue
        if parts is None:
            raise ValueError("parts is None, but must give the part of every unit under 'units'; partition the network first")
        part = np.asarray(parts.get(space, np.zeros(0)), np.int64)
        if len(part) != units or part.min(initial=0) < 0 or part.max(initial=0) >= count:
            rule = f"one in 0..{count - 1} per unit, {units} in all"
            raise ValueError(f"parts of space {space!r} has {len(part)} entries, but must have {rule}; partition this network")
        found[space] = part
    return found
