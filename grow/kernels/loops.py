"""The loops of the compiled kernel: machine code by numba, made at the first use and kept in numba's cache for the next process.

What numba keeps are pickles: as code, they deserve the trust that Python's own .pyc files have, beside which they lie as a rule. Where
others may write to their folder they are neither read nor written, and every process compiles for itself.

The batch is cut into tiles whose values of one feature fill eight registers. A row of the output is summed up in registers,
one multiply-add of a tile for each connection; nothing but the tiles that it reads goes through the caches. The two gradients are one pass
over the columns: what flows back through a connection is read once and used for both.

A matrix whose columns do not fit the core's cache is computed panel by panel: neighbouring columns, all rows, then the next ones. Its
connections stay in their order, row by row; ``starts`` has a place for every panel of every row.

Legend: B batch, O / I target / source entries, E connections, T samples of a tile, N tiles. Tiles of x are (N, I, T), feature-major
within a tile; ``step`` is the distance of one tile from the next and ``pitch`` that of one feature from the next, in elements.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeAlias

import torch
from numba import cfunc, types
from numba.core.caching import FunctionCache

from grow.kernels import registers, vectors
from grow.kernels.tiles import tile_bytes, tiles_here
from grow.kernels.vectors import dot, filled, load, multiply_add, store, transpose, zeros

Compiled: TypeAlias = Callable[..., None]
"""Takes integers and addresses, and lets other threads run meanwhile."""


@dataclass(frozen=True)
class Loops:
    """Machine code for one dtype and ``tile`` samples at a time; every loop is compiled when it is first asked for."""

    scalar: Any
    tile: int

    @cached_property
    def multiply(self) -> Compiled:
        """Rows of ``W x + b``."""
        return machine_code(
            _multiply(self.tile), *_PART, types.intp, _INDICES, _INDICES, self._values, self._values, *self._tiles, *self._tiles
        )

    @cached_property
    def gradients(self) -> Compiled:
        """Columns of ``W^T dy``, and the gradients of their connections."""
        tiles = (*self._tiles, *self._tiles, *self._tiles)
        return machine_code(_gradients(self.tile), *_PART, types.intp, _INDICES, _INDICES, _INDICES, self._values, *tiles, self._values)

    @cached_property
    def weight_gradient(self) -> Compiled:
        """The gradients of the connections alone."""
        return machine_code(_weight_gradient(self.tile), *_PART, types.intp, _INDICES, _INDICES, *self._tiles, *self._tiles, self._values)

    @cached_property
    def row_sums(self) -> Compiled:
        """Sums over the batch."""
        return machine_code(_row_sums(self.tile, self.scalar), *_PART, *self._tiles, self._values)

    @cached_property
    def transposed(self) -> Compiled:
        """A matrix the other way round."""
        return _transposed_of(self.scalar, registers.block_side(self.scalar.bitwidth // 8))

    @property
    def _values(self) -> Any:
        return types.CPointer(self.scalar)

    @property
    def _tiles(self) -> tuple[Any, ...]:
        return (self._values, types.intp, types.intp)


SCALARS = {torch.float32: types.float32, torch.float64: types.float64}
"""Numba's names of the dtypes that loops know."""
_INDICES = types.CPointer(types.int32)
_PART = (types.intp, types.intp, types.intp)


@cache
def loops(dtype: torch.dtype, batch: int) -> Loops:
    """The loops for float32 or float64 with the tiles that suit a batch: wide ones cost less per sample, but may be filled badly."""
    return _loops(dtype, tile_bytes(batch, dtype.itemsize, tiles_here()) // dtype.itemsize)


@cache
def _loops(dtype: torch.dtype, tile: int) -> Loops:
    return Loops(SCALARS[dtype], tile)


@cache
def _transposed_of(scalar: Any, side: int) -> Compiled:
    values, number = types.CPointer(scalar), types.intp
    return machine_code(_transposed(side), number, number, values, number, values, number)


@cache
def masked(dtype: torch.dtype) -> Compiled:
    """Elements first..last of values times a mask of bytes, 0 or 1."""
    scalar = SCALARS[dtype]
    return machine_code(_masked(scalar), types.intp, types.intp, types.CPointer(scalar), types.CPointer(types.uint8))


def machine_code(function: Callable[..., None], *arguments: Any) -> Compiled:
    """Machine code of a function. Addresses are plain integers for the caller, which is the quickest that ctypes has."""
    signature = types.void(*arguments)
    function.__qualname__ += f"_{_sources()}"  # numba's cache goes by this name and by this file, but the code comes from others, too
    code = cfunc(signature, cache=_may_be_kept(function))(function)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * len(arguments))(code.address)
    call.code = code  # type: ignore[attr-defined]  # lives as long as what calls it
    return call


def _may_be_kept(function: Callable[..., None]) -> bool:
    """Whether the folder of numba's cache can be written by this user, and by nobody else: numba unpickles what lies there, and runs it.

    The group that is this user's own may write, too, as it may to all else that this user makes where new folders are open to it.
    """
    try:
        folder = os.stat(FunctionCache(function).cache_path)
    except (OSError, RuntimeError):  # no folder may be written to
        return False
    if sys.platform == "win32":  # no such bits; folders within a profile are the user's alone
        return True
    others = folder.st_mode & (stat.S_IWOTH if folder.st_gid == os.getegid() else stat.S_IWGRP | stat.S_IWOTH)
    return folder.st_uid == os.geteuid() and not others


@cache
def _sources() -> str:
    """A hash of all that the loops are written in."""
    modules = (sys.modules[__name__], vectors)
    try:
        texts = [inspect.getsource(module) for module in modules]
    except OSError:  # installed without its source, which then nobody changes
        return "unknown"
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _multiply(tile: int) -> Any:
    def multiply(  # type: ignore[no-untyped-def]
        first, last, count, panels, starts, columns, values, bias, x, x_step, x_pitch, y, y_step, y_pitch
    ):
        """Rows first..last of y = W x + b, in ``count`` tiles."""
        for n in range(count):
            for panel in range(panels):
                for row in range(first, last):
                    place = n * y_step + row * y_pitch
                    total = load(y, place, tile) if panel else filled(bias[row], tile)
                    for k in range(starts[row * panels + panel], starts[row * panels + panel + 1]):
                        total = multiply_add(filled(values[k], tile), load(x, n * x_step + columns[k] * x_pitch, tile), total)
                    store(y, place, total)

    return multiply


def _gradients(tile: int) -> Any:
    def gradients(  # type: ignore[no-untyped-def]
        first, last, count, panels, starts, rows, order, values, x, x_step, x_pitch, dy, dy_step, dy_pitch, dx, dx_step, dx_pitch, dvalues
    ):
        """Columns first..last of dx = W^T dy, and the gradients of their connections; ``order``: from here to the rows' order."""
        for n in range(count):
            for panel in range(panels):
                for column in range(first, last):
                    source, place = load(x, n * x_step + column * x_pitch, tile), n * dx_step + column * dx_pitch
                    total = load(dx, place, tile) if panel else zeros(values, tile)
                    for k in range(starts[column * panels + panel], starts[column * panels + panel + 1]):
                        connection = order[k]
                        upstream = load(dy, n * dy_step + rows[k] * dy_pitch, tile)
                        total = multiply_add(filled(values[connection], tile), upstream, total)
                        dvalues[connection] += dot(source, upstream)
                    store(dx, place, total)

    return gradients


def _weight_gradient(tile: int) -> Any:
    def weight_gradient(  # type: ignore[no-untyped-def]
        first, last, count, panels, starts, columns, x, x_step, x_pitch, dy, dy_step, dy_pitch, dvalues
    ):
        """Gradients of the connections of rows first..last."""
        for n in range(count):
            for panel in range(panels):
                for row in range(first, last):
                    upstream = load(dy, n * dy_step + row * dy_pitch, tile)
                    for k in range(starts[row * panels + panel], starts[row * panels + panel + 1]):
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
        """Source (rows, columns) -> target (columns, rows), block by block through registers, along the longer side."""
        whole_rows, whole_columns = rows - rows % side, columns - columns % side
        if rows > columns:
            for column in range(0, whole_columns, side):
                for row in range(0, whole_rows, side):
                    transpose(source, row * pitch + column, pitch, target, column * target_pitch + row, target_pitch, side)
        else:
            for row in range(0, whole_rows, side):
                for column in range(0, whole_columns, side):
                    transpose(source, row * pitch + column, pitch, target, column * target_pitch + row, target_pitch, side)
        for row in range(rows):
            for column in range(whole_columns if row < whole_rows else 0, columns):
                target[column * target_pitch + row] = source[row * pitch + column]

    return transposed


def _masked(scalar: Any) -> Any:
    def masked(first, last, values, mask):  # type: ignore[no-untyped-def]
        """A product, since what is no number stays none."""
        for place in range(first, last):
            values[place] = values[place] * scalar(mask[place])

    return masked
