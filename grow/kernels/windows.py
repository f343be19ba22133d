"""Sparse convolutions of stride 1 without patches: a connection adds a shifted copy of its input channel to its output channel.

A channel of the whole batch lies in memory as one line, image after image, row after row, with as many zeros behind every row and
every image as the padding has. A tap reads the line a fixed number of elements further on, whatever the position, so that the loops
of the compiled kernel compute the convolution as they stand: a connection is the place at which its reading begins. Where a window
would reach over an edge it meets zeros; positions at which the convolution has no output are computed and left out::

    width 3, padding 1:   a b c 0 d e f 0 ...    tap -1 of position d reads the 0 before it, tap +1 of f the one behind

Legend: B batch, O / I target / source channels, E connections, L positions of a line, filled up to whole tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grow.kernels.base import Geometry
from grow.kernels.lines import Lines, loops_of, run
from grow.kernels.orders import by_columns, by_rows

if TYPE_CHECKING:
    from grow.kernels.loops import Loops

WASTE = 4
"""Positions that are computed for one that is kept, at most."""


@dataclass(frozen=True)
class Grid:
    """Where values lie in a line: images of ``size`` (H, W), within ``pitch`` (rows, columns), of which ``outputs`` (H', W') are kept."""

    batch: int
    size: tuple[int, int]
    outputs: tuple[int, int]
    pitch: tuple[int, int]
    margin: int
    length: int

    @staticmethod
    def of(
        batch: int, size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype
    ) -> Grid:
        """The grid of a convolution. margin: how far a window reaches before or behind a line, at most."""
        reach = [d * (taps - 1) for taps, d in zip(kernel, dilation, strict=True)]
        outputs = [length + 2 * pad - far for length, pad, far in zip(size, padding, reach, strict=True)]
        pitch = [max(length + pad, kept) for length, pad, kept in zip(size, padding, outputs, strict=True)]
        before = padding[0] * pitch[1] + padding[1]
        behind = (reach[0] - padding[0]) * pitch[1] + reach[1] - padding[1]
        tile = loops_of(dtype, batch * prod(pitch)).tile
        length = -(-batch * prod(pitch) // tile) * tile
        return Grid(batch, size, (outputs[0], outputs[1]), (pitch[0], pitch[1]), max(before, behind, -behind), length)

    def loops(self, dtype: torch.dtype) -> Loops:
        """The loops over the grid's tiles."""
        return loops_of(dtype, self.batch * prod(self.pitch))

    @property
    def waste(self) -> float:
        """Positions computed over positions kept."""
        return self.length / max(1, self.batch * prod(self.outputs))

    def room(self, channels: int, like: Tensor) -> Tensor:
        """Lines of zeros with a margin before the first and behind the last one, flat."""
        return like.new_zeros(channels * self.length + 2 * self.margin)

    def maps(self, lines: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
        """Maps (B, channels, *size) as a view of lines."""
        return lines.as_strided(
            (self.batch, channels, *size), (prod(self.pitch), self.length, self.pitch[1], 1), lines.storage_offset() + self.margin
        )


@dataclass(frozen=True, eq=False)
class Windows:
    """The connections of a convolution (O, I, kh, kw) by output and by input channels; ``order`` takes the latter order to the former.

    channels, taps: of both orders, the channel that a connection reads and its tap (row, column), each (E,).
    """

    shape: tuple[int, ...]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    starts: tuple[Tensor, Tensor]
    channels: tuple[Tensor, Tensor]
    taps: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    order: Tensor

    @staticmethod
    def of(positions: Tensor, geometry: Geometry) -> Windows:
        """Windows of sorted flat positions (E,)."""
        shape = geometry.shape
        taps = positions % (shape[2] * shape[3])
        channel = positions // (shape[2] * shape[3])
        tap = (taps // shape[3]).int(), (taps % shape[3]).int()
        starts, _ = by_rows(positions, (shape[0], prod(shape[1:])))
        inputs = (channel % shape[1]).int()
        input_starts, outputs, order = by_columns(starts, inputs, shape[1])
        turned = tap[0][order], tap[1][order]
        return Windows(shape, geometry.padding, geometry.dilation, (starts, input_starts), (inputs, outputs), (tap, turned), order)

    def lines(self, grid: Grid) -> tuple[Lines, Lines]:
        """By output and by input channels, the element at which each connection begins to read a line of the other side."""
        found = []
        for starts, channels, (row, column), sign in zip(self.starts, self.channels, self.taps, (1, -1), strict=True):
            shift = (row * self.dilation[0] - self.padding[0]) * grid.pitch[1] + column * self.dilation[1] - self.padding[1]
            found.append(Lines(starts, channels * grid.length + sign * shift))
        return found[0], found[1]


class WindowProduct(torch.autograd.Function):
    """A convolution of stride 1 by its windows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, product: Convolution, grid: Grid) -> Tensor:
        """X (B, I, H, W), values (E,), bias (O,) -> (B, O, H', W'), channel after channel in memory."""
        loops, values, shape = grid.loops(values.dtype), values.contiguous(), product.windows.shape
        lines, _ = product.lines(grid)
        read, written = grid.room(shape[1], x), x.new_empty(shape[0] * grid.length + 2 * grid.margin)
        grid.maps(read, shape[1], grid.size).copy_(x)
        offsets = values.new_zeros(shape[0]) if bias is None else bias.contiguous()
        begin = grid.margin * x.element_size()
        places = (read.data_ptr() + begin, loops.tile, 1, written.data_ptr() + begin, loops.tile, grid.length)
        run(loops.multiply, lines, grid.length // loops.tile, *lines.addresses, values.data_ptr(), offsets.data_ptr(), *places)
        ctx.save_for_backward(read, values)
        ctx.product, ctx.grid = product, grid
        kept = grid.maps(written, shape[0], grid.outputs)
        return _by_channels(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x (B, I, H, W), the values (E,) and the bias (O,)."""
        read, values = ctx.saved_tensors
        grid: Grid = ctx.grid
        shape, loops = ctx.product.windows.shape, grid.loops(values.dtype)
        forwards, backwards = ctx.product.lines(grid)
        upstream = grid.room(shape[0], values)
        grid.maps(upstream, shape[0], grid.outputs).copy_(gradients[0])
        begin, tiles = grid.margin * values.element_size(), grid.length // loops.tile
        x = (read.data_ptr() + begin, loops.tile)
        dy = (upstream.data_ptr() + begin, loops.tile)
        dvalues = torch.zeros_like(values) if ctx.needs_input_grad[1] else None
        dx = None
        if ctx.needs_input_grad[0]:
            written = values.new_empty(shape[1] * grid.length + 2 * grid.margin)
            summed = torch.zeros_like(values) if dvalues is None else dvalues
            places = (*x, grid.length, *dy, 1, written.data_ptr() + begin, loops.tile, grid.length, summed.data_ptr())
            order = ctx.product.windows.order.data_ptr()
            run(loops.gradients, backwards, tiles, *backwards.addresses, order, values.data_ptr(), *places)
            dx = _by_channels(grid.maps(written, shape[1], grid.size))
        elif dvalues is not None:
            run(loops.weight_gradient, forwards, tiles, *forwards.addresses, *x, 1, *dy, grid.length, dvalues.data_ptr())
        dbias = gradients[0].sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, dvalues, dbias, None, None


def _by_channels(maps: Tensor) -> Tensor:
    """A copy (B, C, H, W) with channel after channel in memory, as the next convolution reads it."""
    batch, _, height, width = maps.shape
    strides = (height * width, batch * height * width, width, 1)
    return torch.empty_strided(maps.shape, strides, dtype=maps.dtype).copy_(maps)


class Convolution:
    """A convolution's product for its present connections."""

    def __init__(self, positions: Tensor, geometry: Geometry) -> None:
        self.windows = Windows.of(positions, geometry)
        self.lines = lru_cache(maxsize=4)(self.windows.lines)

    def grid(self, x: Tensor, dtype: torch.dtype) -> Grid | None:
        """Where x (B, I, H, W) would lie; None where patches are cheaper, or positions would not be numbers of 32 bits."""
        shape, windows = self.windows.shape, self.windows
        size, kernel = (x.shape[2], x.shape[3]), (shape[2], shape[3])
        grid = Grid.of(x.shape[0], size, kernel, windows.padding, windows.dilation, dtype)
        small = max(shape[0], shape[1]) * grid.length + grid.margin < 2**31
        return grid if small and min(grid.outputs) > 0 and grid.waste <= WASTE else None

    def __call__(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor | None:
        """X (B, I, H, W), values (E,), bias (O,) -> (B, O, H', W'); None where patches are cheaper."""
        grid = self.grid(x, values.dtype)
        return None if grid is None else WindowProduct.apply(x, values, bias, self, grid)  # type: ignore[no-untyped-call]
