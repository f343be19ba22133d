"""The loops of the compiled stack: a layer on a tile of samples, four rows at once where four read the same sources.

A row alone reads a source for every multiply-add, so that the cache sets the pace; four rows that read the same sources read each of them
once, and their sums stay in registers from the bias to the cap.

Legend: U units, T samples of a tile, K sources of a block, G blocks of R rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types

from grow.kernels import registers
from grow.kernels.loops import Compiled, machine_code
from grow.kernels.vectors import clipped, filled, load, multiply_add, store

WIDE_LANES = {4: (64, 32, 16), 1: (128, 64, 32, 16)}
"""By rows of a block: samples whose sums stay in registers, 16 of the 32 of AVX-512 at most."""

NARROW_LANES = {4: (16,), 1: (64, 32, 16)}
"""The same in half of the registers of AVX2."""


@cache
def layer_on_tile(rows: int, samples: int) -> Compiled:
    """All blocks of so many rows on a tile of so many samples, a multiple of 16.

    Takes the number of blocks, ``starts`` (G + 1,) into the sources, ``columns`` (K of all blocks,), ``values`` (R of each), ``targets``
    (G * R,), the bias and the cap (2,), what is read (U, T) and what is given (U, T), and T.
    """
    known = (WIDE_LANES if registers.wide() else NARROW_LANES)[rows]
    lanes = next(lanes for lanes in known if samples % lanes == 0)
    indices, values = types.CPointer(types.int32), types.CPointer(types.float32)
    loop = {4: _four, 1: _one}[rows](lanes)
    return machine_code(loop, types.intp, indices, indices, values, indices, values, values, values, types.intp)


def _four(lanes: int) -> Any:
    def four(blocks, starts, columns, values, targets, limits, x, y, samples):  # type: ignore[no-untyped-def]
        """Blocks of four rows."""
        bias, cap = filled(limits[0], lanes), filled(limits[1], lanes)
        for block in range(blocks):
            for t in range(0, samples, lanes):
                a = b = c = d = bias
                for k in range(starts[block], starts[block + 1]):
                    source = load(x, columns[k] * samples + t, lanes)
                    a = multiply_add(filled(values[4 * k], lanes), source, a)
                    b = multiply_add(filled(values[4 * k + 1], lanes), source, b)
                    c = multiply_add(filled(values[4 * k + 2], lanes), source, c)
                    d = multiply_add(filled(values[4 * k + 3], lanes), source, d)
                store(y, targets[4 * block] * samples + t, clipped(a, cap))
                store(y, targets[4 * block + 1] * samples + t, clipped(b, cap))
                store(y, targets[4 * block + 2] * samples + t, clipped(c, cap))
                store(y, targets[4 * block + 3] * samples + t, clipped(d, cap))

    return four


def _one(lanes: int) -> Any:
    def one(blocks, starts, columns, values, targets, limits, x, y, samples):  # type: ignore[no-untyped-def]
        """Single rows."""
        cap = filled(limits[1], lanes)
        for row in range(blocks):
            for t in range(0, samples, lanes):
                total = filled(limits[0], lanes)
                for k in range(starts[row], starts[row + 1]):
                    total = multiply_add(filled(values[k], lanes), load(x, columns[k] * samples + t, lanes), total)
                store(y, targets[row] * samples + t, clipped(total, cap))

    return one
