"""Compiled for the CPU that it runs on: each row of the output is summed up in registers, for a tile of the batch at a time.

All products run feature-major, and outputs are transposed views, so that activations stay so from one sparse layer to the next.
What comes in row-major is transposed on the way into its tiles, and its gradient goes back row-major.

The same bits come out in every run and on any number of threads: a thread computes whole rows. Where numba or the CPU is missing, csr
computes instead.

Legend: B batch, O / I target / source entries, E connections, T samples of a tile, P the batch filled up to whole tiles.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grow.kernels import csr
from grow.kernels.base import Kernel, Product

if TYPE_CHECKING:
    from grow.kernels.loops import Loops

READS_TO_COPY = 64
"""Reads of a feature that make up for a copy of it."""


@dataclass(frozen=True, eq=False)
class Lines:
    """The connections of each row of a matrix: ``starts`` (rows + 1,) into their ``others`` (E,), the columns that they read."""

    starts: Tensor
    others: Tensor

    @staticmethod
    def of(rows: Tensor, columns: Tensor, count: int) -> Lines:
        """Lines of connections that are sorted by their rows, of which there are ``count``."""
        starts = torch.zeros(count + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(rows, minlength=count).cumsum(0)
        return Lines(starts, columns.int())

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Where the indices lie."""
        return self.starts.data_ptr(), self.others.data_ptr()

    @cached_property
    def whole(self) -> list[tuple[int, int]]:
        """All rows in one part."""
        return [(0, len(self.starts) - 1)]

    def parts(self) -> list[tuple[int, int]]:
        """First and last row of one part for each of torch's threads, equal in connections."""
        threads = torch.get_num_threads()
        return self.whole if threads == 1 else _parts(self, threads)


def _parts(lines: Lines, threads: int) -> list[tuple[int, int]]:
    rows = len(lines.starts) - 1
    work = lines.starts.numpy() + np.arange(rows + 1)  # an empty row costs something too
    bounds = np.searchsorted(work, np.linspace(0, work[-1], threads + 1)[1:-1]).tolist()
    return [(first, last) for first, last in zip([0, *bounds], [*bounds, rows], strict=True) if first < last]


@dataclass(frozen=True, eq=False)
class Structure:
    """The connections of W (O, I) by rows and by columns; ``order`` (E,) takes the columns' order to the rows'."""

    shape: tuple[int, int]
    rows: Lines
    columns: Lines
    order: Tensor
    no_bias: Tensor  # (O,) float64 zeros: no other dtype is wider

    @staticmethod
    def of(positions: Tensor, shape: tuple[int, int]) -> Structure:
        """Structure of sorted flat positions (E,)."""
        rows, columns = positions // shape[1], positions % shape[1]
        order = torch.argsort(columns, stable=True)
        by_columns = Lines.of(columns[order], rows[order], shape[1])
        return Structure(shape, Lines.of(rows, columns, shape[0]), by_columns, order.int(), torch.zeros(shape[0], dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Tiles:
    """Values of a batch, feature-major: feature f of sample n * T + t lies ``step * n + pitch * f + t`` elements into the tensor."""

    tensor: Tensor
    count: int
    step: int
    pitch: int

    @property
    def place(self) -> tuple[int, int, int]:
        """Address, step and pitch."""
        return self.tensor.data_ptr(), self.step, self.pitch

    @staticmethod
    def of(x: Tensor, loops: Loops, reads: int) -> Tiles:
        """Tiles of x (B, F), of which ``reads`` features are read in all.

        It is itself where it is feature-major and fills its tiles, else a copy. If it is read often, several tiles are put apart, too: rows
        that lie a power of two apart fall into the same sets of a cache.
        """
        (batch, features), tile = x.shape, loops.tile
        count = -(-batch // tile)
        filled = batch == count * tile
        if x.stride(0) == 1 and filled and (count == 1 or reads < READS_TO_COPY * features):
            return Tiles(x, count, tile, x.stride(1))
        tiles = (x.new_empty if filled else x.new_zeros)(count, features, tile)
        if x.stride(1) != 1 and x.stride(0) != 1:
            x = x.contiguous()
        for n in range(count):
            part = x[n * tile : (n + 1) * tile]
            if x.stride(1) == 1:
                loops.transposed(len(part), features, part.data_ptr(), x.stride(0), tiles[n].data_ptr(), tile)
            else:
                tiles[n, :, : len(part)] = part.t()
        return Tiles(tiles, count, features * tile, tile)


def _empty(batch: int, features: int, like: Tensor, tile: int) -> Tiles:
    """Room for a feature-major (B, F), with rows of whole tiles."""
    count = -(-batch // tile)
    room = like.new_empty(features * count * tile)  # no view, which autograd would not let anybody change
    return Tiles(room.as_strided_((batch, features), (1, count * tile)), count, tile, count * tile)


class CompiledProduct(torch.autograd.Function):
    """``y = x W^T + b`` with W given by its structure and values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure) -> Tensor:
        """Features (B, I), values (E,), bias (O,) -> (B, O)."""
        loops = _loops(values.dtype, len(x))
        values = values.contiguous()
        offsets = structure.no_bias if bias is None else bias.contiguous()
        tiles = Tiles.of(x, loops, len(values))
        y = _empty(len(x), structure.shape[0], values, loops.tile)
        lines = structure.rows
        _run(loops.multiply, lines, y.count, *lines.addresses, values.data_ptr(), offsets.data_ptr(), *tiles.place, *y.place)
        ctx.save_for_backward(tiles.tensor, values)
        ctx.structure, ctx.tiles, ctx.row_major = structure, (tiles.count, tiles.step, tiles.pitch), x.stride(1) == 1 != x.stride(0)
        return y.tensor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x (B, I), the values (E,) and the bias (O,)."""
        stored, values = ctx.saved_tensors
        structure: Structure = ctx.structure
        loops = _loops(values.dtype, len(gradients[0]))
        x, dy = Tiles(stored, *ctx.tiles), Tiles.of(gradients[0], loops, len(values))
        of_x, of_values, of_bias, _ = ctx.needs_input_grad
        dx = _empty(len(gradients[0]), structure.shape[1], values, loops.tile) if of_x else None
        dvalues = torch.zeros_like(values) if of_values else None
        if dx is not None and dvalues is not None:
            lines, order = structure.columns, structure.order.data_ptr()
            places = (*x.place, *dy.place, *dx.place, dvalues.data_ptr())
            _run(loops.gradients, lines, dy.count, *lines.addresses, order, values.data_ptr(), *places)
        elif dx is not None:
            lines, taken = structure.columns, values[structure.order]
            _run(loops.multiply, lines, dy.count, *lines.addresses, taken.data_ptr(), structure.no_bias.data_ptr(), *dy.place, *dx.place)
        elif dvalues is not None:
            lines = structure.rows
            _run(loops.weight_gradient, lines, dy.count, *lines.addresses, *x.place, *dy.place, dvalues.data_ptr())
        dbias = None
        if of_bias:
            dbias = values.new_zeros(structure.shape[0])
            _run(loops.row_sums, structure.rows, dy.count, *dy.place, dbias.data_ptr())
        return None if dx is None else _like_input(dx, ctx.row_major, loops), dvalues, dbias, None


def _like_input(dx: Tiles, row_major: bool, loops: Loops) -> Tensor:
    """The gradient (B, I) in the layout of the input."""
    if not row_major:
        return dx.tensor
    batch, features = dx.tensor.shape
    gradient = dx.tensor.new_empty(batch, features)
    loops.transposed(features, batch, dx.tensor.data_ptr(), dx.pitch, gradient.data_ptr(), features)
    return gradient


def _loops(dtype: torch.dtype, batch: int) -> Loops:
    from grow.kernels.loops import loops  # numba takes longer to import than all else

    return loops(dtype, batch)


def _run(loop: Callable[..., None], lines: Lines, *arguments: int) -> None:
    """Run a loop over all lines, a part on each of torch's threads."""
    parts = lines.parts()
    if len(parts) == 1:
        loop(*parts[0], *arguments)
    else:
        for done in [_pool(os.getpid(), len(parts)).submit(loop, *part, *arguments) for part in parts]:
            done.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this very process: a fork inherits none."""
    return ThreadPoolExecutor(threads, thread_name_prefix="grow-kernel")


@cache
def available() -> bool:
    """Whether numba is here and can compile for this machine."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        _ = _loops(torch.float32, 1).transposed
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with values (E,)."""
    if positions is None:
        raise ValueError("the compiled kernel was given no positions, but needs the layer's connections; store the layer compressed")
    if positions.device.type != "cpu" or not available():
        return csr.prepare(positions, shape)
    structure = Structure.of(positions, shape)

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return CompiledProduct.apply(x, values, bias, structure)  # type: ignore[no-any-return, no-untyped-call]

    return product


COMPILED = Kernel("compiled", "compressed", frozenset({torch.float64, torch.float32}), prepare)
