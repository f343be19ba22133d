"""Connections to measure kernels on: anywhere, or in the structure that a kernel is made for.

Legend: E connections, each a flat position in a weight (rows, columns); a convolution counts its channels times its taps as columns.
"""

from __future__ import annotations

import numpy as np

from grow.axes import IntArray


def drawn(kernel: str, rows: int, columns: int, density: float, taps: int = 1) -> IntArray:
    """Sorted flat positions (E,) at about a density, as the kernel likes them best; at random within that."""
    generator = np.random.default_rng(0)
    if kernel == "columns":
        return _same_columns(rows, columns, density, taps, generator)
    if kernel == "condensed":
        fan_in = max(1, round(density * columns))
        return np.concatenate([row * columns + np.sort(generator.choice(columns, fan_in, replace=False)) for row in range(rows)])
    if kernel == "radix":
        return _two_places(rows, columns, max(2, round(2 / density)))
    if kernel.startswith("block_"):
        return _blocks(rows, columns, density, int(kernel.removeprefix("block_")), generator)
    return np.sort(generator.choice(rows * columns, max(1, round(density * rows * columns)), replace=False))


def _same_columns(rows: int, columns: int, density: float, taps: int, generator: np.random.Generator) -> IntArray:
    """All rows read the same channels, with all taps."""
    channels = columns // taps
    read = np.sort(generator.choice(channels, max(1, round(density * channels)), replace=False))
    entries = (read[:, None] * taps + np.arange(taps)).reshape(-1)
    found: IntArray = (np.arange(rows)[:, None] * columns + entries).reshape(-1)
    return found


def _two_places(rows: int, columns: int, places: int) -> IntArray:
    """A layer of a RadiX-Net of radix 2: each target reads its own of so many places and the one before."""
    step = (np.arange(rows)[:, None] - np.arange(columns)) % places
    return np.flatnonzero(step < 2)


def _blocks(rows: int, columns: int, density: float, size: int, generator: np.random.Generator) -> IntArray:
    """Whole blocks."""
    shape = (rows // size, columns // size)
    chosen = np.zeros(shape[0] * shape[1], np.bool_)
    chosen[generator.choice(len(chosen), max(1, round(density * len(chosen))), replace=False)] = True
    return np.flatnonzero(np.kron(chosen.reshape(shape), np.ones((size, size), np.bool_)))
