"""The loops of the compiled kernel: machine code by numba, made at the first use and kept in numba's cache for the next process.

The batch is cut into tiles whose values of one feature fill eight registers (AVX-512). A row of the output is summed up in registers,
one multiply-add of a tile for each connection; nothing but the tiles that it reads goes through the caches. The two gradients are one pass
over the columns: what flows back through a connection is read once and used for both.

Legend: B batch, O / I target / source entries, E connections, T samples of a tile, N tiles. Tiles of x are (N, I, T), feature-major
within a tile; ``step`` is the distance of one tile from the next and ``pitch`` that of one feature from the next, in elements.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from numba import cfunc, types

from grow.kernels.vectors import PART_BYTES, dot, filled, load, multiply_add, store, transpose, zeros

TILE_BYTES = 512
"""Of one feature in a tile. The gradients hold two such rows, 16 of the 32 registers of AVX-512."""

Compiled: TypeAlias = Callable[..., None]
"""Takes integers and addresses, and lets other threads run meanwhile."""


@dataclass(frozen=True)
class Loops:
    """Machine code for one dtype. ``tile``: samples of a tile."""

    tile: int
    multiply: Compiled
    gradients: Compiled
    weight_gradient: Compiled
    row_sums: Compiled
    transposed: Compiled


@cache
def loops(dtype: torch.dtype) -> Loops:
    """The loops for float32 or float64."""
    scalar = {torch.float32: types.float32, torch.float64: types.float64}[dtype]
    tile, side = (size * 8 // scalar.bitwidth for size in (TILE_BYTES, PART_BYTES))
    number, indices, values = types.intp, types.CPointer(types.int32), types.CPointer(scalar)
    part, tiles = (number, number, number), (values, number, number)
    return Loops(
        tile,
        _compiled(_multiply(tile), *part, indices, indices, values, values, *tiles, *tiles),
        _compiled(_gradients(tile), *part, indices, indices, indices, values, *tiles, *tiles, *tiles, values),
        _compiled(_weight_gradient(tile), *part, indices, indices, *tiles, *tiles, values),
        _compiled(_row_sums(tile, scalar), *part, *tiles, values),
        _compiled(_transposed(side), number, number, values, number, values, number),
    )


def _compiled(function: Callable[..., None], *arguments: Any) -> Compiled:
    """Machine code of a function. Addresses are plain integers for the caller, which is the quickest that ctypes has."""
    signature = types.void(*arguments)
    try:
        code = cfunc(signature, cache=True)(function)
    except RuntimeError:  # no folder for a cache may be written to
        code = cfunc(signature)(function)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * len(arguments))(code.address)
    call.code = code  # type: ignore[attr-defined]  # lives as long as what calls it
    return call


def _multiply(tile: int) -> Any:
    def multiply(first, last, count, starts, columns, values, bias, x, x_step, x_pitch, y, y_step, y_pitch):  # type: ignore[no-untyped-def]
        """Rows first..last of y = W x + b, in ``count`` tiles."""
        for n in range(count):
            for row in range(first, last):
                total = filled(bias[row], tile)
                for k in range(starts[row], starts[row + 1]):
                    total = multiply_add(filled(values[k], tile), load(x, n * x_step + columns[k] * x_pitch, tile), total)
                store(y, n * y_step + row * y_pitch, total)

    return multiply


def _gradients(tile: int) -> Any:
    def gradients(  # type: ignore[no-untyped-def]
        first, last, count, starts, rows, order, values, x, x_step, x_pitch, dy, dy_step, dy_pitch, dx, dx_step, dx_pitch, dvalues
    ):
        """Columns first..last of dx = W^T dy, and the gradients of their connections; ``order``: from here to the rows' order."""
        for n in range(count):
            for column in range(first, last):
                source = load(x, n * x_step + column * x_pitch, tile)
                total = zeros(values, tile)
                for k in range(starts[column], starts[column + 1]):
                    connection = order[k]
                    upstream = load(dy, n * dy_step + rows[k] * dy_pitch, tile)
                    total = multiply_add(filled(values[connection], tile), upstream, total)
                    dvalues[connection] += dot(source, upstream)
                store(dx, n * dx_step + column * dx_pitch, total)

    return gradients


def _weight_gradient(tile: int) -> Any:
    def weight_gradient(  # type: ignore[no-untyped-def]
        first, last, count, starts, columns, x, x_step, x_pitch, dy, dy_step, dy_pitch, dvalues
    ):
        """Gradients of the connections of rows first..last."""
        for n in range(count):
            for row in range(first, last):
                upstream = load(dy, n * dy_step + row * dy_pitch, tile)
                for k in range(starts[row], starts[row + 1]):
                    dvalues[k] += dot(load(x, n * x_step + columns[k] * x_pitch, tile), upstream)

    return weight_gradient


def _row_sums(tile: int, scalar: Any) -> Any:
    def row_sums(first, last, count, dy, dy_step, dy_pitch, sums):  # type: ignore[no-untyped-def]
        """Sums over the batch of rows first..last."""
        ones = filled(scalar(1), tile)
        for row in range(first, last):
            for n in range(count):
                sums[row] += dot(ones, load(dy, n * dy_step + row * dy_pitch, tile))

    return row_sums


def _transposed(side: int) -> Any:
    def transposed(rows, columns, source, pitch, target, target_pitch):  # type: ignore[no-untyped-def]
        """Source (rows, columns) -> target (columns, rows), block by block through registers."""
        for row in range(0, rows, side):
            for column in range(0, columns, side):
                if row + side <= rows and column + side <= columns:
                    transpose(source, row * pitch + column, pitch, target, column * target_pitch + row, target_pitch)
                else:
                    for i in range(row, min(row + side, rows)):
                        for j in range(column, min(column + side, columns)):
                            target[j * target_pitch + i] = source[i * pitch + j]

    return transposed
