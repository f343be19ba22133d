"""A criterion's scores of a network's connections, and the choice that a pattern makes among them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch

from grow.axes import IntArray
from grow.criteria import Criterion
from grow.evidence import LayerEvidence
from grow.network import Network
from grow.patterns import Choice, highest, highest_balanced, lowest, lowest_groups
from grow.topology import Connections


def to_prune(network: Network, criterion: Criterion, evidence: Mapping[str, LayerEvidence], count: int, price: float | None) -> Choice:
    """The ``count`` least salient connections; every layer keeps its strongest one, every output unit its own strongest.

    ``price`` of a halo unit, in median scores; None: the network's parts play no role.
    """
    topology, scored = network.topology, {}
    for layer in topology.layers:
        positions = layer.positions()
        scores = _flat_scores(criterion, evidence[layer.layer])[positions]
        into_output = any(topology.space(segment.space).role == "output" for segment in layer.target)
        keep = _strongest(layer, positions, scores, by_row=into_output)
        scored[layer.layer] = (np.delete(positions, keep), np.delete(scores, keep))
    count = min(count, sum(len(positions) for positions, _ in scored.values()))
    if network.parts is None or price is None:
        return lowest(scored, count)
    return lowest_groups(scored, topology, network.parts, price, count)


def to_grow(network: Network, criterion: Criterion, evidence: Mapping[str, LayerEvidence], count: int, price: float | None) -> Choice:
    """The ``count`` absent connections most worth having."""
    topology = network.topology
    scored: dict[str, tuple[IntArray, np.ndarray]] = {}
    for layer in topology.layers:
        positions = _absent(layer)
        scored[layer.layer] = (positions, _flat_scores(criterion, evidence[layer.layer])[positions])
    count = min(count, topology.possible - topology.connections)
    if network.parts is None or price is None:
        return highest(scored, count)
    return highest_balanced(scored, topology, network.parts, price, count)


def _flat_scores(criterion: Criterion, evidence: LayerEvidence) -> np.ndarray:
    return criterion.score(evidence).reshape(-1).to(torch.float32).cpu().numpy()


def _strongest(layer: Connections, positions: IntArray, scores: np.ndarray, by_row: bool) -> IntArray:
    """Where in ``positions`` the highest score stands, of the layer or of each of its rows."""
    if not by_row:
        return np.array([scores.argmax()]) if len(scores) else np.zeros(0, np.int64)
    rows = positions // prod(layer.shape[1:])
    order = np.lexsort((scores, rows))
    return order[np.flatnonzero(np.diff(rows[order], append=-1))]


def _absent(layer: Connections) -> IntArray:
    missing = np.ones(layer.possible, bool)
    missing[layer.positions()] = False
    return np.flatnonzero(missing)
