"""Inference of a deep stack of sparse layers, compiled: products, biases, ReLU and cap in one pass, on tiles that stay in the cache.

Rows that read the same sources, as the nodes of one place of a RadiX-Net do, are computed four at a time, so that a source is read once for
all of them (`grow.kernels.stack_loops`).

Samples come in tiles, feature-major (units, samples), and a tile goes through several layers before the next one starts, so that its
activations never leave the cache. A sample all of whose activations are zero stays so where no bias is positive: it is dropped, and the
others move together. numba is imported when the first stack runs.

Legend: N samples, U units, T samples of a tile, G blocks, K sources of all blocks of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int32]

CACHE_VALUES = 2**17
"""Values of a tile's activations, 512 KiB: the tile before and after a layer share a second-level cache."""

TOGETHER = 8
"""Most layers that a tile goes through before the dead samples of all tiles are dropped."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """``rows`` targets each that read the same sources: ``starts`` (G + 1,) into ``columns`` (K,), values (K, rows), targets (G, rows)."""

    rows: int
    starts: Ints
    columns: Ints
    values: Floats
    targets: Ints

    @staticmethod
    def of(weight: csr_array, targets: Sequence[Sequence[int]], rows: int) -> Blocks:
        """The blocks of these targets of a weight by rows."""
        starts, fan_in = weight.indptr, np.diff(weight.indptr)
        firsts = [some[0] for some in targets]
        ends = np.cumsum([0, *(fan_in[first] for first in firsts)])
        empty = np.zeros(0, weight.indices.dtype)
        columns = np.concatenate([empty, *(weight.indices[starts[first] : starts[first + 1]] for first in firsts)])
        values = np.concatenate(
            [np.zeros((0, rows)), *(np.stack([weight.data[starts[row] : starts[row + 1]] for row in some], axis=1) for some in targets)]
        )
        return Blocks(
            rows,
            ends.astype(np.int32),
            columns.astype(np.int32),
            np.ascontiguousarray(values, np.float32),
            np.array(targets, np.int32).reshape(-1, rows),
        )


@dataclass(frozen=True, eq=False)
class StackLayer:
    """``y = min(max(W x + bias, 0), cap)`` with W (units, sources) by blocks of rows, and one bias for all units, not positive.

    The nodes of one place of a RadiX-Net read the same sources, in whatever order they stand: they are computed four at a time.
    """

    units: int
    blocks: tuple[Blocks, ...]
    limits: Floats  # bias and cap

    @staticmethod
    def of(weight: csr_array, bias: float, cap: float = np.inf) -> StackLayer:
        """The layer of a weight (targets, sources). ValueError for a positive bias, which would bring dead samples back to life."""
        if bias > 0:
            raise ValueError(f"bias is {bias}, but must be at most 0, so that a sample without activations has none later; use a Network")
        rows = csr_array(weight, dtype=np.float32)
        rows.sort_indices()
        alike: dict[bytes, list[int]] = {}
        for row, (start, end) in enumerate(pairwise(rows.indptr.tolist())):
            alike.setdefault(rows.indices[start:end].tobytes(), []).append(row)
        fours = [same[at : at + 4] for same in alike.values() for at in range(0, len(same) - 3, 4)]
        rest = sorted(row for same in alike.values() for row in same[len(same) // 4 * 4 :])
        blocks = (Blocks.of(rows, fours, 4), Blocks.of(rows, [[row] for row in rest], 1))
        return StackLayer(rows.shape[0], tuple(some for some in blocks if len(some.targets)), np.array([bias, cap], np.float32))


def alive_after(layers: Sequence[StackLayer], inputs: csr_array) -> tuple[NDArray[np.int64], Floats]:
    """Which samples of sparse inputs (N, U) have any activation after the last layer, ascending, and their activations (alive, U)."""
    samples = np.flatnonzero(np.diff(inputs.indptr))
    alive = csr_array(inputs[samples], dtype=np.float32)
    tile = max(16, CACHE_VALUES // max(inputs.shape[1], *(layer.units for layer in layers)) // 16 * 16)
    tiles: Iterator[Floats] = (_dense(alive[start : start + tile], tile) for start in range(0, len(samples), tile))
    done, together = 0, 1
    while done < len(layers):
        some = layers[done : done + together]
        survivors, left = _Packed(tile, some[-1].units), list[NDArray[np.int64]]()
        for number, activations in enumerate(tiles):
            own = samples[number * tile : (number + 1) * tile]
            outputs = _through(some, activations)
            living = np.flatnonzero(outputs[:, : len(own)].any(axis=0))
            survivors.add(outputs, living)
            left.append(own[living])
        samples, tiles = np.concatenate([np.zeros(0, np.int64), *left]), iter(survivors.tiles())
        done, together = done + len(some), min(2 * together, TOGETHER)
    found = [activations.T for activations in tiles]
    return samples, np.concatenate([np.zeros((0, layers[-1].units), np.float32), *found])[: len(samples)]


def _dense(rows: csr_array, tile: int) -> Floats:
    """Samples as a tile (U, T), zero where there are fewer."""
    dense = np.zeros((rows.shape[1], tile), np.float32)
    dense[:, : rows.shape[0]] = rows.toarray().T
    return dense


class _Packed:
    """Samples that are left of some tiles, moved together into as few."""

    def __init__(self, tile: int, units: int) -> None:
        self._shape, self._full, self._count = (units, tile), list[Floats](), tile

    def add(self, activations: Floats, living: NDArray[np.int64]) -> None:
        """Take over some columns of a tile."""
        while len(living):
            if self._count == self._shape[1]:
                self._full.append(np.zeros(self._shape, np.float32))
                self._count = 0
            taken = living[: self._shape[1] - self._count]
            self._full[-1][:, self._count : self._count + len(taken)] = activations[:, taken]
            self._count, living = self._count + len(taken), living[len(taken) :]

    def tiles(self) -> list[Floats]:
        """All that was taken over, in order."""
        return self._full


def _through(layers: Sequence[StackLayer], activations: Floats) -> Floats:
    """A tile (U, T) after some layers; memory of the tile itself may be used."""
    from grow.kernels.stack_loops import layer_on_tile  # numba takes longer to import than all else

    samples = activations.shape[1]
    for layer in layers:
        outputs = np.empty((layer.units, samples), np.float32)
        for some in layer.blocks:
            arrays = (some.starts, some.columns, some.values, some.targets, layer.limits, activations, outputs)
            layer_on_tile(some.rows, samples)(len(some.targets), *(array.ctypes.data for array in arrays), samples)
        activations = outputs
    return activations
