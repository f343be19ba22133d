"""Compiled for the CPU that it runs on: each row of the output is summed up in registers, for a tile of the batch at a time.

All products run feature-major, and outputs are transposed views, so that activations stay so from one sparse layer to the next.
What comes in row-major is transposed on the way into its tiles, and its gradient goes back row-major.

The same bits come out in every run and on any number of threads: a thread computes whole rows. Where numba or the CPU is missing, csr
computes instead.

Legend: B batch, O / I target / source entries, E connections, T samples of a tile, P the batch filled up to whole tiles.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grow.kernels import csr
from grow.kernels.base import Convolve, Geometry, Kernel, Product
from grow.kernels.lines import Lines, loops_of, run
from grow.kernels.opaque import opaque
from grow.kernels.orders import by_columns, by_rows
from grow.kernels.windows import Convolution

if TYPE_CHECKING:
    from grow.kernels.loops import Loops

READS_TO_COPY = 64
"""Reads of a feature that make up for a copy of it."""


@dataclass(frozen=True, eq=False)
class Structure:
    """The connections of W (O, I) by rows and by columns.

    Columns are found when they are first asked for, since only the gradient of what is read needs them, or are ``known``.
    """

    shape: tuple[int, int]
    rows: Lines
    no_bias: Tensor  # (O,) float64 zeros: no other dtype is wider
    known: tuple[Lines, Tensor] | None = None

    @staticmethod
    def of(positions: Tensor, shape: tuple[int, int]) -> Structure:
        """Structure of sorted flat positions (E,)."""
        starts, columns = by_rows(positions, shape)
        return Structure(shape, Lines.of(starts, columns, shape[1]), torch.zeros(shape[0], dtype=torch.float64))

    @cached_property
    def by_columns(self) -> tuple[Lines, Tensor]:
        """Columns, and what takes their order to the rows', (E,)."""
        if self.known is not None:
            return self.known
        starts, rows, order = by_columns(self.rows.starts[:: self.rows.panels], self.rows.others, self.shape[1])
        return Lines.of(starts, rows, self.shape[0]), order

    def tensors(self) -> list[Tensor]:
        """All that it consists of, but its shape."""
        columns, order = self.by_columns
        return [self.rows.starts, self.rows.others, columns.starts, columns.others, order, self.no_bias]

    @staticmethod
    def restored(tensors: list[Tensor], shape: tuple[int, int]) -> Structure:
        """The structure of this shape that consists of these tensors."""
        starts, others = tensors[0:4:2], tensors[1:4:2]
        rows, columns = (Lines(at, to, (len(at) - 1) // count) for at, to, count in zip(starts, others, shape, strict=True))
        return Structure(shape, rows, tensors[5], (columns, tensors[4]))


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
        if x.stride(1) == 1:
            source, target, pitch, size = x.data_ptr(), tiles.data_ptr(), x.stride(0), x.element_size()
            for first in range(0, batch, tile):  # by addresses: views take as long as a small tile
                given = source + first * pitch * size, pitch, target + first * features * size, tile
                loops.transposed(min(tile, batch - first), features, *given)
        else:
            for n in range(count):
                part = x[n * tile : (n + 1) * tile]
                tiles[n, :, : len(part)] = part.t()
        return Tiles(tiles, count, features * tile, tile)


def _empty(batch: int, features: int, like: Tensor, tile: int) -> Tiles:
    """Room for a feature-major (B, F), with rows of whole tiles."""
    count = -(-batch // tile)
    room = like.new_empty(features * count * tile)  # no view, which autograd would not let anybody change
    return Tiles(room.as_strided_((batch, features), (1, count * tile)), count, tile, count * tile)


def _multiplied(x: Tiles, values: Tensor, bias: Tensor | None, structure: Structure, batch: int) -> Tensor:
    """The output (B, O)."""
    loops = loops_of(values.dtype, batch)
    offsets = structure.no_bias if bias is None else bias.contiguous()
    y, lines = _empty(batch, structure.shape[0], values, loops.tile), structure.rows
    run(loops.multiply, lines, y.count, *lines.addresses, values.data_ptr(), offsets.data_ptr(), *x.place, *y.place)
    return y.tensor


def _gradients(
    x: Tiles, values: Tensor, upstream: Tensor, structure: Structure, of_x: bool, of_values: bool, of_bias: bool
) -> tuple[Tiles | None, Tensor | None, Tensor | None]:
    """Gradients of x (B, I), the values (E,) and the bias (O,), for that of the output (B, O); those that are asked for."""
    loops = loops_of(values.dtype, len(upstream))
    dy = Tiles.of(upstream, loops, len(values))
    dx = _empty(len(upstream), structure.shape[1], values, loops.tile) if of_x else None
    dvalues = torch.zeros_like(values) if of_values else None
    if dx is not None and dvalues is not None:
        lines, order = structure.by_columns
        places = (*x.place, *dy.place, *dx.place, dvalues.data_ptr())
        run(loops.gradients, lines, dy.count, *lines.addresses, order.data_ptr(), values.data_ptr(), *places)
    elif dx is not None:
        lines, order = structure.by_columns
        taken = values[order]
        run(loops.multiply, lines, dy.count, *lines.addresses, taken.data_ptr(), structure.no_bias.data_ptr(), *dy.place, *dx.place)
    elif dvalues is not None:
        lines = structure.rows
        run(loops.weight_gradient, lines, dy.count, *lines.addresses, *x.place, *dy.place, dvalues.data_ptr())
    dbias = None
    if of_bias:
        dbias = values.new_zeros(structure.shape[0])
        run(loops.row_sums, structure.rows, dy.count, *dy.place, dbias.data_ptr())
    return dx, dvalues, dbias


def _gradients_tile_by_tile(
    x: Tiles, values: Tensor, upstream: Tensor, structure: Structure, of_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same, all but perhaps the bias, where what was read and what comes back (B, O) are row-major, on one thread.

    A tile comes, is used and goes while it lies in the core's own cache.
    """
    loops, (batch, outputs), (lines, order) = loops_of(values.dtype, len(upstream)), upstream.shape, structure.by_columns
    inputs, tile, size = structure.shape[1], loops.tile, upstream.element_size()
    dy, dx = upstream.new_empty(outputs * tile), upstream.new_empty(inputs * tile)
    gradient, dvalues = upstream.new_empty(batch, inputs), torch.zeros_like(values)
    dbias = values.new_zeros(outputs) if of_bias else None
    come, go, read = upstream.data_ptr(), gradient.data_ptr(), x.tensor.data_ptr()
    given, found = (dy.data_ptr(), 0, tile), (dx.data_ptr(), 0, tile)
    for number, first in enumerate(range(0, batch, tile)):
        samples = min(tile, batch - first)
        if samples < tile:
            dy.zero_()
        loops.transposed(samples, outputs, come + first * upstream.stride(0) * size, upstream.stride(0), given[0], tile)
        source = read + number * x.step * size, 0, x.pitch
        loops.gradients(
            0, lines.rows, 1, *lines.addresses, order.data_ptr(), values.data_ptr(), *source, *given, *found, dvalues.data_ptr()
        )
        if dbias is not None:
            loops.row_sums(0, outputs, 1, *given, dbias.data_ptr())
        loops.transposed(inputs, samples, found[0], tile, go + first * inputs * size, inputs)
    return gradient, dvalues, dbias


class CompiledProduct(torch.autograd.Function):
    """``y = x W^T + b`` with W given by its structure and values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure) -> Tensor:
        """Features (B, I), values (E,), bias (O,) -> (B, O)."""
        values = values.contiguous()
        tiles = Tiles.of(x, loops_of(values.dtype, len(x)), len(values))
        ctx.save_for_backward(tiles.tensor, values)
        ctx.structure, ctx.tiles, ctx.row_major = structure, (tiles.count, tiles.step, tiles.pitch), x.stride(1) == 1 != x.stride(0)
        return _multiplied(tiles, values, bias, structure, len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x (B, I), the values (E,) and the bias (O,)."""
        (stored, values), (upstream, *_) = ctx.saved_tensors, gradients
        x, needed = Tiles(stored, *ctx.tiles), ctx.needs_input_grad[:3]
        if needed[0] and needed[1] and ctx.row_major and upstream.stride(1) == 1 and torch.get_num_threads() == 1:
            return *_gradients_tile_by_tile(x, values, upstream, ctx.structure, needed[2]), None
        dx, dvalues, dbias = _gradients(x, values, upstream, ctx.structure, *needed)
        loops = loops_of(values.dtype, len(upstream))
        return None if dx is None else _like_input(dx, ctx.row_major, loops), dvalues, dbias, None


def _like_input(dx: Tiles, row_major: bool, loops: Loops) -> Tensor:
    """The gradient (B, I) in the layout of the input."""
    if not row_major:
        return dx.tensor
    batch, features = dx.tensor.shape
    gradient = dx.tensor.new_empty(batch, features)
    loops.transposed(features, batch, dx.tensor.data_ptr(), dx.pitch, gradient.data_ptr(), features)
    return gradient


@cache
def available() -> bool:
    """Whether numba is here and can compile for this machine."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        _ = loops_of(torch.float32, 1).transposed
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _dense(tensor: Tensor) -> Tensor:
    """A feature-major (B, F) without room behind its rows, which is what torch's compiler is told of."""
    dense = _room(tensor.shape[0], tensor.shape[1], tensor)
    return tensor if tensor.stride() == dense.stride() else dense.copy_(tensor)


def _room(batch: int, features: int, like: Tensor) -> Tensor:
    return like.new_empty_strided((batch, features), (1, batch))


@opaque("compiled_output", lambda x, values, bias, tensors, outputs, inputs: _room(x.shape[0], outputs, values))
def graph_output(x: Tensor, values: Tensor, bias: Tensor | None, tensors: list[Tensor], outputs: int, inputs: int) -> Tensor:
    """X (B, I), values (E,), bias (O,) -> (B, O); ``tensors`` are those of the structure."""
    structure = Structure.restored(tensors, (outputs, inputs))
    tiles = Tiles.of(x, loops_of(values.dtype, len(x)), len(values))
    return _dense(_multiplied(tiles, values.contiguous(), bias, structure, len(x)))


@opaque(
    "compiled_gradients",
    lambda x, values, upstream, tensors, outputs, inputs, of_x, of_values, of_bias: (
        _room(x.shape[0] if of_x else 0, inputs, values),
        values.new_empty(values.shape[0] if of_values else 0),
        values.new_empty(outputs if of_bias else 0),
    ),
)
def graph_gradients(
    x: Tensor,
    values: Tensor,
    upstream: Tensor,
    tensors: list[Tensor],
    outputs: int,
    inputs: int,
    of_x: bool,
    of_values: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, I), the values (E,) and the bias (O,); empty ones where they are not asked for."""
    structure, loops = Structure.restored(tensors, (outputs, inputs)), loops_of(values.dtype, len(x))
    values = values.contiguous()
    dx, dvalues, dbias = _gradients(Tiles.of(x, loops, len(values)), values, upstream, structure, of_x, of_values, of_bias)
    return (
        _room(0, inputs, values) if dx is None else _dense(dx.tensor),
        values.new_empty(0) if dvalues is None else dvalues,
        values.new_empty(0) if dbias is None else dbias,
    )


class GraphProduct(torch.autograd.Function):
    """The same product within a graph under compilation, which knows tensors and no addresses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure) -> Tensor:
        """Features (B, I), values (E,), bias (O,) -> (B, O)."""
        ctx.save_for_backward(x, values)
        ctx.structure = structure
        return graph_output(x, values, bias, structure.tensors(), *structure.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x (B, I), the values (E,) and the bias (O,)."""
        x, values = ctx.saved_tensors
        structure: Structure = ctx.structure
        needed = ctx.needs_input_grad[:3]
        found = graph_gradients(x, values, gradients[0], structure.tensors(), *structure.shape, *needed)
        return *(gradient if asked else None for gradient, asked in zip(found, needed, strict=True)), None


def prepare(positions: Tensor | None, shape: tuple[int, int], whole: bool = False) -> Product:
    """Product with values (E,). whole: nothing is left to be prepared by the first gradient."""
    if positions is None:
        raise ValueError("the compiled kernel was given no positions, but needs the layer's connections; store the layer compressed")
    if positions.device.type != "cpu" or not available():
        return csr.prepare(positions, shape)
    structure = Structure.of(positions, shape)
    if whole:
        _ = structure.by_columns

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        kind = GraphProduct if torch.compiler.is_compiling() else CompiledProduct
        return kind.apply(x, values, bias, structure)  # type: ignore[no-any-return, no-untyped-call]

    return product


def prepare_convolution(positions: Tensor, geometry: Geometry) -> Convolve | None:
    """Convolution with the values (E,) of the connections at sorted flat positions; None but for stride 1 on the CPU."""
    if geometry.stride != (1, 1) or positions.device.type != "cpu" or not available():
        return None
    return Convolution(positions, geometry)


COMPILED = Kernel(
    "compiled",
    "compressed",
    frozenset({torch.float64, torch.float32}),
    prepare,
    convolution=prepare_convolution,
    prepare_graph=partial(prepare, whole=True),
)
