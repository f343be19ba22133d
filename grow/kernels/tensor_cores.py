"""Products of block-sparse weights in Triton, on the tensor cores of a GPU.

A program computes one tile of the batch for one row (output) or column (input gradient) of blocks, or one block (weight gradient: the
product of two dense matrices, sampled at the blocks). It sums up in registers and in a fixed order, so that every run gives the
same bits. Rows of blocks come before tiles of the batch: what a tile holds of the input stays in the cache until all rows have read it.

Sums are float32, for float64 float64. Products of float32 follow `torch.set_float32_matmul_precision`: "highest" computes them in
float32, the others in tf32. With TRITON_INTERPRET=1 in the environment before Triton is imported, everything runs in its interpreter on
the CPU.

Legend: B batch, O / I target / source entries, S size of a block, R / C rows / columns of blocks, N blocks, F = N*S*S entries. The
entries of a row of blocks are a matrix (S, width), row by row; its block n starts at column (n - row_starts[row]) * S. A tensor's
steps are its strides from sample to sample and from feature to feature.
"""

# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128
"""Samples of a tile of the output and of the input gradient."""

SUMMED = 64
"""Samples of which a weight gradient takes up the products at a time."""


@triton.jit
def _output(
    y, x, entries, bias, row_starts, columns, batch, inputs, outputs, y_sample, y_feature, x_sample, x_feature,
    size: tl.constexpr, tile: tl.constexpr, biased: tl.constexpr, sums: tl.constexpr, precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    samples = tl.program_id(1).to(tl.int64) * tile + tl.arange(0, tile)  # (T,)
    within = tl.arange(0, size)
    first, last = tl.load(row_starts + row), tl.load(row_starts + row + 1)
    matrix = entries + first.to(tl.int64) * size * size + within[:, None] * (last - first) * size + within[None, :]
    total = tl.full((tile, size), 0.0, sums)
    for number in range(first, last):
        read = tl.load(columns + number).to(tl.int64) * size + within  # (S,)
        there = (samples[:, None] < batch) & (read[None, :] < inputs)
        values = tl.load(x + samples[:, None] * x_sample + read[None, :] * x_feature, mask=there, other=0.0)  # (T, S)
        block = tl.load(matrix + (number - first) * size)  # (S, S)
        if widen:
            values, block = values.to(tl.float32), block.to(tl.float32)
        total = tl.dot(values, tl.trans(block), total, input_precision=precision, out_dtype=sums)
    own = row.to(tl.int64) * size + within  # (S,)
    if biased:
        total += tl.load(bias + own, mask=own < outputs, other=0.0).to(sums)[None, :]
    there = (samples[:, None] < batch) & (own[None, :] < outputs)
    tl.store(y + samples[:, None] * y_sample + own[None, :] * y_feature, total.to(y.dtype.element_ty), mask=there)


@triton.jit
def _input_gradient(
    gradient, upstream, entries, row_starts, rows, column_starts, order, batch, inputs, outputs, g_sample, g_feature, u_sample, u_feature,
    size: tl.constexpr, tile: tl.constexpr, sums: tl.constexpr, precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0)
    samples = tl.program_id(1).to(tl.int64) * tile + tl.arange(0, tile)  # (T,)
    within = tl.arange(0, size)
    total = tl.full((tile, size), 0.0, sums)
    for place in range(tl.load(column_starts + column), tl.load(column_starts + column + 1)):
        number = tl.load(order + place)
        row = tl.load(rows + number)
        first, last = tl.load(row_starts + row), tl.load(row_starts + row + 1)
        start = first.to(tl.int64) * size * size + (number - first) * size
        block = tl.load(entries + start + within[:, None] * (last - first) * size + within[None, :])  # (S, S)
        written = row.to(tl.int64) * size + within  # (S,)
        there = (samples[:, None] < batch) & (written[None, :] < outputs)
        values = tl.load(upstream + samples[:, None] * u_sample + written[None, :] * u_feature, mask=there, other=0.0)  # (T, S)
        if widen:
            values, block = values.to(tl.float32), block.to(tl.float32)
        total = tl.dot(values, block, total, input_precision=precision, out_dtype=sums)
    own = column.to(tl.int64) * size + within  # (S,)
    there = (samples[:, None] < batch) & (own[None, :] < inputs)
    tl.store(gradient + samples[:, None] * g_sample + own[None, :] * g_feature, total.to(gradient.dtype.element_ty), mask=there)


@triton.jit
def _weight_gradient(
    gradient, x, upstream, row_starts, rows, columns, batch, inputs, outputs, x_sample, x_feature, u_sample, u_feature,
    size: tl.constexpr, summed: tl.constexpr, sums: tl.constexpr, precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    row, column = tl.load(rows + number), tl.load(columns + number)
    within = tl.arange(0, size)
    written, read = row.to(tl.int64) * size + within, column.to(tl.int64) * size + within  # (S,)
    total = tl.full((size, size), 0.0, sums)
    for start in range(0, batch, summed):
        samples = start + tl.arange(0, summed).to(tl.int64)  # (K,)
        there = (samples[:, None] < batch) & (read[None, :] < inputs)
        values = tl.load(x + samples[:, None] * x_sample + read[None, :] * x_feature, mask=there, other=0.0)  # (K, S)
        there = (samples[None, :] < batch) & (written[:, None] < outputs)
        slopes = tl.load(upstream + samples[None, :] * u_sample + written[:, None] * u_feature, mask=there, other=0.0)  # (S, K)
        if widen:
            values, slopes = values.to(tl.float32), slopes.to(tl.float32)
        total = tl.dot(slopes, values, total, input_precision=precision, out_dtype=sums)
    first, last = tl.load(row_starts + row), tl.load(row_starts + row + 1)
    place = first.to(tl.int64) * size * size + (number - first) * size + within[:, None] * (last - first) * size + within[None, :]
    tl.store(gradient + place, total.to(gradient.dtype.element_ty))


def output(y: Tensor, x: Tensor, entries: Tensor, bias: Tensor | None, row_starts: Tensor, columns: Tensor, size: int) -> None:
    """Write the output (B, O) for x (B, I)."""
    grid = (len(row_starts) - 1, triton.cdiv(len(x), TILE))
    sizes = (len(x), x.shape[1], y.shape[1], *y.stride(), *x.stride())
    given = y if bias is None else bias  # without a bias the argument is not looked at
    _output[grid](y, x, entries, given, row_starts, columns, *sizes, size, TILE, bias is not None, **_arithmetic(x))


def input_gradient(
    gradient: Tensor, upstream: Tensor, entries: Tensor, row_starts: Tensor, rows: Tensor, column_starts: Tensor, order: Tensor, size: int
) -> None:
    """Write the gradient (B, I) of the input, for the gradient (B, O) of the output."""
    grid = (len(column_starts) - 1, triton.cdiv(len(upstream), TILE))
    sizes = (len(upstream), gradient.shape[1], upstream.shape[1], *gradient.stride(), *upstream.stride())
    _input_gradient[grid](
        gradient, upstream, entries, row_starts, rows, column_starts, order, *sizes, size, TILE, **_arithmetic(upstream)
    )  # fmt: skip


def weight_gradient(gradient: Tensor, x: Tensor, upstream: Tensor, row_starts: Tensor, rows: Tensor, columns: Tensor, size: int) -> None:
    """Write the gradient (F,) of the entries, for x (B, I) and the gradient (B, O) of the output."""
    if len(rows):
        sizes = (len(x), x.shape[1], upstream.shape[1], *x.stride(), *upstream.stride())
        _weight_gradient[(len(rows),)](gradient, x, upstream, row_starts, rows, columns, *sizes, size, SUMMED, **_arithmetic(x))


def _arithmetic(x: Tensor) -> dict[str, Any]:
    """How products are computed and summed up, and how the compiler may arrange them."""
    tf32 = x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return {
        "sums": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "precision": "tf32" if tf32 else "ieee",
        "widen": x.dtype == torch.bfloat16 and not x.is_cuda,  # the interpreter would multiply the bits as integers
        "num_warps": 4,
        "num_stages": 3,
    }
