"""Random connections of a layer that leave no unit out."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from grow.axes import IntArray
from grow.topology import Connections


def scatter(layer: Connections, units: Mapping[str, int], count: int, generator: np.random.Generator) -> IntArray | None:
    """``count`` random connections, sorted; None when that is all of them.

    First comes a random cover, max(target units, source units) connections such that every target unit has one and every
    source unit has one (as far as ``count`` reaches); the rest is uniform over all others. Uniform alone would leave units
    without fan-in or fan-out at low densities: they cost units, but compute nothing.
    """
    if count == layer.possible:
        return None
    cover = np.sort(_cover(layer, units, count, generator))
    rank = generator.choice(layer.possible - len(cover), count - len(cover), replace=False, shuffle=False)  # among all others
    others = rank + np.searchsorted(cover - np.arange(len(cover)), rank, side="right")  # no array as large as the weight
    return np.sort(np.concatenate([cover, others]))


def cover_size(layer: Connections, units: Mapping[str, int]) -> int:
    """Connections that it takes to give every target unit and every source unit of a layer at least one."""
    return max(layer.shape[0], sum(units[segment.space] for segment in layer.source))


def _cover(layer: Connections, units: Mapping[str, int], count: int, generator: np.random.Generator) -> IntArray:
    segments = [np.full(units[segment.space], segment.repeat) for segment in layer.source]
    columns_of_unit = np.concatenate(segments) if segments else np.ones(1, np.int64)  # a depthwise row reads its own unit
    first_column = np.cumsum(columns_of_unit) - columns_of_unit
    taps = prod(layer.shape[2:])
    size = min(count, cover_size(layer, units))
    # The longer side is visited once, the shorter one in turns: no pair of units comes twice.
    rows = np.resize(generator.permutation(layer.shape[0]), size)
    sources = np.resize(generator.permutation(len(columns_of_unit)), size)
    columns = first_column[sources] + generator.integers(columns_of_unit[sources])
    positions: IntArray = (rows * layer.shape[1] + columns) * taps + generator.integers(taps, size=size)
    return positions
