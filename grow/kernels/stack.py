"""Inference of a deep stack of sparse layers, compiled: products, biases, ReLU and cap in one pass, on tiles that stay in the cache.

Samples come in tiles, feature-major (units, samples), and a tile goes through several layers before the next one starts, so that its
activations never leave the cache. A sample all of whose activations are zero stays so where no bias is positive: it is dropped, and the
others move together. numba is imported when the first stack runs.

Legend: N samples, U units, E connections of a layer, T samples of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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
class StackLayer:
    """``y = min(max(W x + bias, 0), cap)`` with W (targets, sources) by rows, and one bias for all units, not positive."""

    starts: Ints  # (targets + 1,)
    columns: Ints  # (E,)
    values: Floats  # (E,)
    bias: float
    cap: float

    @staticmethod
    def of(weight: csr_array, bias: float, cap: float = np.inf) -> StackLayer:
        """The layer of a weight (targets, sources). ValueError for a positive bias, which would bring dead samples back to life."""
        if bias > 0:
            raise ValueError(f"bias is {bias}, but must be at most 0, so that a sample without activations has none later; use a Network")
        rows = csr_array(weight, dtype=np.float32)
        rows.sort_indices()
        return StackLayer(rows.indptr.astype(np.int32), rows.indices.astype(np.int32), rows.data, bias, cap)


def alive_after(layers: Sequence[StackLayer], inputs: csr_array) -> tuple[NDArray[np.int64], Floats]:
    """Which samples of sparse inputs (N, U) have any activation after the last layer, ascending, and their activations (alive, U)."""
    samples = np.flatnonzero(np.diff(inputs.indptr))
    alive = csr_array(inputs[samples], dtype=np.float32)
    tile = max(16, CACHE_VALUES // max(inputs.shape[1], *(len(layer.starts) - 1 for layer in layers)) // 16 * 16)
    tiles: Iterator[Floats] = (_dense(alive[start : start + tile], tile) for start in range(0, len(samples), tile))
    done, together = 0, 1
    while done < len(layers):
        some = layers[done : done + together]
        survivors, left = _Packed(tile, len(some[-1].starts) - 1), list[NDArray[np.int64]]()
        for number, activations in enumerate(tiles):
            own = samples[number * tile : (number + 1) * tile]
            outputs = _through(some, activations)
            living = np.flatnonzero(outputs[:, : len(own)].any(axis=0))
            survivors.add(outputs, living)
            left.append(own[living])
        samples, tiles = np.concatenate([np.zeros(0, np.int64), *left]), iter(survivors.tiles())
        done, together = done + len(some), min(2 * together, TOGETHER)
    found = [activations.T for activations in tiles]
    return samples, np.concatenate([np.zeros((0, len(layers[-1].starts) - 1), np.float32), *found])[: len(samples)]


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
    step = _compiled()
    for layer in layers:
        outputs = np.empty((len(layer.starts) - 1, activations.shape[1]), np.float32)
        step(layer.starts, layer.columns, layer.values, np.float32(layer.bias), np.float32(layer.cap), activations, outputs)
        activations = outputs
    return activations


_Step: TypeAlias = Callable[[Ints, Ints, Floats, np.float32, np.float32, Floats, Floats], None]


@cache
def _compiled() -> _Step:
    """One layer on one tile."""
    from numba import njit

    def layer(
        starts: Ints, columns: Ints, values: Floats, bias: np.float32, cap: np.float32, x: Floats, y: Floats
    ) -> None:  # pragma: no cover, compiled
        zero, samples = np.float32(0), x.shape[1]
        for row in range(len(starts) - 1):
            out = y[row]
            for t in range(samples):
                out[t] = bias
            k, end = starts[row], starts[row + 1]
            while k + 8 <= end:  # eight sources a pass: the sums are read and written once for eight products
                a, b, c, d = x[columns[k]], x[columns[k + 1]], x[columns[k + 2]], x[columns[k + 3]]
                e, f, g, h = x[columns[k + 4]], x[columns[k + 5]], x[columns[k + 6]], x[columns[k + 7]]
                va, vb, vc, vd = values[k], values[k + 1], values[k + 2], values[k + 3]
                ve, vf, vg, vh = values[k + 4], values[k + 5], values[k + 6], values[k + 7]
                for t in range(samples):
                    out[t] += va * a[t] + vb * b[t] + vc * c[t] + vd * d[t] + ve * e[t] + vf * f[t] + vg * g[t] + vh * h[t]
                k += 8
            while k < end:
                source, value = x[columns[k]], values[k]
                for t in range(samples):
                    out[t] += value * source[t]
                k += 1
            for t in range(samples):
                out[t] = min(max(out[t], zero), cap)

    compiled: _Step = njit(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy", boundscheck=False)(layer)
    return compiled
