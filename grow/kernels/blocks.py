"""Square blocks of a weight, each a small dense product: for layers whose connections fill blocks (`grow.structured.blocks`).

Where all blocks are full, the values of the connections are the kernel's storage as they are: those of one row of blocks follow each
other row by row, and so are a dense matrix of their own. Other structures are computed as well, but what their blocks lack is filled
up with zeros first.

On a GPU the products run on tensor cores (`grow.kernels.tensor_cores`); elsewhere every row of blocks is one dense product of torch,
feature-major.

Legend: B batch, O / I target / source entries, E connections, S size of a block, R / C rows / columns of blocks, N blocks,
F = N*S*S entries of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from grow.kernels.base import Kernel, Product
from grow.kernels.opaque import opaque

SIZES = (16, 32, 64)
"""Sizes of blocks that have a kernel. Tensor cores compute nothing smaller than 16."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which blocks a weight (O, I) has: in the order of their rows, and, for the transpose, in the order of their columns.

    order: numbers of the blocks by columns. slots: the connections' places among the entries of the blocks; None where all are full.
    """

    shape: tuple[int, int]
    size: int
    row_starts: Tensor  # (R + 1,)
    rows: Tensor  # (N,)
    columns: Tensor  # (N,)
    column_starts: Tensor  # (C + 1,)
    order: Tensor  # (N,)
    slots: Tensor | None  # (E,)

    @staticmethod
    def of(positions: Tensor, shape: tuple[int, int], size: int) -> Blocks:
        """The blocks that hold connections at sorted flat positions (E,)."""
        down, across = -(-shape[0] // size), -(-shape[1] // size)
        row, column = positions // shape[1], positions % shape[1]
        found, number = torch.unique(row // size * across + column // size, return_inverse=True)  # (N,), (E,)
        rows, columns = found // across, found % across
        starts = _starts(rows, down)
        slots = None
        if len(positions) != len(found) * size**2:
            band = row // size  # (E,)
            width = (starts[1:] - starts[:-1])[band] * size
            slots = starts[band] * size**2 + row % size * width + (number - starts[band]) * size + column % size
        order = torch.argsort(columns, stable=True)
        return Blocks(shape, size, starts.int(), rows.int(), columns.int(), _starts(columns, across).int(), order.int(), slots)

    def spread(self, values: Tensor) -> Tensor:
        """Values of the connections (E,) -> entries of the blocks (F,), with their gradient."""
        if self.slots is None:
            return values
        return values.new_zeros(len(self.columns) * self.size**2).index_put((self.slots,), values)


def _starts(numbers: Tensor, length: int) -> Tensor:
    counts = torch.bincount(numbers, minlength=length)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _empty(x: Tensor, features: int, cores: bool) -> Tensor:
    """Room for (B, features): sample by sample for tensor cores, else feature-major."""
    strides = (features, 1) if cores else (1, x.shape[0])
    return x.new_empty_strided((x.shape[0], features), strides)  # no view, which autograd would not let anybody change


@opaque("block_output", lambda x, entries, bias, row_starts, columns, size, outputs, cores: _empty(x, outputs, cores))
def output(
    x: Tensor, entries: Tensor, bias: Tensor | None, row_starts: Tensor, columns: Tensor, size: int, outputs: int, cores: bool
) -> Tensor:
    """X (B, I) -> (B, outputs)."""
    y = _empty(x, outputs, cores)
    if cores:
        from grow.kernels import tensor_cores

        tensor_cores.output(y, x, entries, bias, row_starts, columns, size)
        return y
    features, lines = x.t(), y.zero_().t()
    for rows, weight, read in _bands(entries, row_starts, columns, size, (outputs, x.shape[1])):
        torch.mm(weight, features.index_select(0, read), out=lines[rows])
    return y if bias is None else y.add_(bias)


@opaque(
    "block_input_gradient",
    lambda upstream, entries, row_starts, rows, columns, column_starts, order, size, inputs, cores: _empty(upstream, inputs, cores),
)
def input_gradient(
    upstream: Tensor,
    entries: Tensor,
    row_starts: Tensor,
    rows: Tensor,
    columns: Tensor,
    column_starts: Tensor,
    order: Tensor,
    size: int,
    inputs: int,
    cores: bool,
) -> Tensor:
    """Gradient of the output (B, O) -> of the input (B, inputs)."""
    gradient = _empty(upstream, inputs, cores)
    if cores:
        from grow.kernels import tensor_cores

        tensor_cores.input_gradient(gradient, upstream, entries, row_starts, rows, column_starts, order, size)
        return gradient
    features, lines = upstream.t(), gradient.zero_().t()
    for own, weight, read in _bands(entries, row_starts, columns, size, (upstream.shape[1], inputs)):
        lines.index_add_(0, read, weight.t() @ features[own])
    return gradient


@opaque("block_weight_gradient", lambda x, upstream, entries, row_starts, rows, columns, size, cores: torch.empty_like(entries))
def weight_gradient(
    x: Tensor, upstream: Tensor, entries: Tensor, row_starts: Tensor, rows: Tensor, columns: Tensor, size: int, cores: bool
) -> Tensor:
    """Gradient of the entries (F,), from x (B, I) and the gradient of the output (B, O)."""
    gradient = torch.zeros_like(entries)
    if cores:
        from grow.kernels import tensor_cores

        tensor_cores.weight_gradient(gradient, x, upstream, row_starts, rows, columns, size)
        return gradient
    features = x.t()
    for own, weight, read in _bands(gradient, row_starts, columns, size, (upstream.shape[1], x.shape[1])):
        weight.copy_(upstream.t()[own] @ features.index_select(0, read).t())
    return gradient


def _bands(
    entries: Tensor, row_starts: Tensor, columns: Tensor, size: int, shape: tuple[int, int]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of each row of blocks that has any: its rows, its matrix (S, width) as a view of the entries, and the columns (width,) that it reads.

    At the lower and the right edge of the weight, what lies beyond it is left out.
    """
    within = torch.arange(size, device=columns.device)
    starts = row_starts.tolist()
    for band, (first, last) in enumerate(pairwise(starts)):
        if first == last:
            continue
        read = (columns[first:last, None].long() * size + within).reshape(-1)
        read = read[read < shape[1]]  # blocks are in the order of their columns: only the last one may reach beyond
        rows = slice(band * size, min((band + 1) * size, shape[0]))
        matrix = entries[first * size**2 : last * size**2].view(size, -1)
        yield rows, matrix[: rows.stop - rows.start, : len(read)], read


class BlockProduct(torch.autograd.Function):
    """``y = x W^T + b`` with W given by its blocks and their entries."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, entries: Tensor, bias: Tensor | None, blocks: Blocks, cores: bool) -> Tensor:
        """X (B, I), entries (F,), bias (O,) -> (B, O)."""
        ctx.save_for_backward(x, entries)
        ctx.blocks, ctx.cores = blocks, cores
        return output(x, entries, bias, blocks.row_starts, blocks.columns, blocks.size, blocks.shape[0], cores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of x (B, I), the entries (F,) and the bias (O,)."""
        x, entries = ctx.saved_tensors
        of: Blocks = ctx.blocks
        upstream, cores = gradients[0], ctx.cores  # (B, O)
        grad_x = grad_entries = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = input_gradient(
                upstream, entries, of.row_starts, of.rows, of.columns, of.column_starts, of.order, of.size, of.shape[1], cores
            )
        if ctx.needs_input_grad[1]:
            grad_entries = weight_gradient(x, upstream, entries, of.row_starts, of.rows, of.columns, of.size, cores)
        if ctx.needs_input_grad[2]:
            grad_bias = upstream.sum(0)
        return grad_x, grad_entries, grad_bias, None, None


TRITON = find_spec("triton") is not None


def prepare(positions: Tensor | None, shape: tuple[int, int], size: int, cores: bool | None = None) -> Product:
    """Product with the values (E,) of the connections at sorted flat positions.

    cores: whether Triton's kernels compute it; None: on a GPU where Triton is installed.
    """
    if positions is None:
        raise ValueError(f"kernel 'block_{size}' was given no positions, but needs the layer's connections; store the layer compressed")
    blocks = Blocks.of(positions, shape, size)
    chosen = positions.is_cuda and TRITON if cores is None else cores

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = BlockProduct.apply(x, blocks.spread(values), bias, blocks, chosen)  # type: ignore[no-untyped-call]
        return y

    return product


def full(positions: Tensor | None, shape: tuple[int, int], size: int) -> bool:
    """Whether the connections fill blocks of this size, so that values are entries of blocks as they are."""
    if positions is None or len(positions) == 0 or len(positions) % size**2:
        return False
    first = positions[:size]
    if bool((first != first[0] + torch.arange(len(first), device=first.device)).any()):  # tells most structures at once
        return False
    return Blocks.of(positions, shape, size).slots is None


def kernel(size: int) -> Kernel:
    """The kernel for blocks of ``size`` rows and columns."""
    return Kernel(
        f"block_{size}",
        "compressed",
        frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}),
        partial(prepare, size=size),
        made_for=partial(full, size=size),
    )


BLOCKS = tuple(kernel(size) for size in SIZES)
