"""Condensed: every row has the same number of connections, so that their columns and values are small dense matrices (O, K).

A row of the output is a weighted sum of K rows of the input, feature-major: what torch's embedding bags compute. The transpose has
bags of different lengths. Constant fan-in and its condensed form: Lasby et al. 2024, Dynamic Sparse Training with Structured Sparsity,
2305.02299.

Legend: B batch, O / I target / source entries, K connections of a row, E = O K connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from grow.kernels.base import Kernel, Product, UnfitStructureError
from grow.kernels.orders import by_columns, by_rows

SUM = 0
"""What torch calls bags that are summed up."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Columns of each row, (O, K). By columns: ``starts`` (I,) of each in ``rows`` (E,), ``order`` (E,) from there to the rows' order."""

    columns: Tensor
    starts: Tensor
    rows: Tensor
    order: Tensor

    @staticmethod
    def of(positions: Tensor, shape: tuple[int, int]) -> Structure:
        """Structure of sorted flat positions (E,)."""
        row_starts, columns = by_rows(positions, shape)
        starts, rows, order = by_columns(row_starts, columns, shape[1])
        return Structure(columns.reshape(shape[0], -1), starts[:-1], rows, order)


class CondensedProduct(torch.autograd.Function):
    """``y = W x``, feature-major."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, structure: Structure) -> Tensor:
        """Features (I, B) and values (E,) -> (O, B)."""
        features, columns = x.contiguous(), structure.columns
        ctx.save_for_backward(features, values)
        ctx.structure = structure
        return functional.embedding_bag(columns, features, per_sample_weights=values.reshape(columns.shape), mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of the features (I, B) and the values (E,)."""
        features, values = ctx.saved_tensors
        structure: Structure = ctx.structure
        upstream = gradients[0].contiguous()  # (O, B)
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            taken = values[structure.order]
            grad_x = functional.embedding_bag(structure.rows, upstream, structure.starts, mode="sum", per_sample_weights=taken)
        if ctx.needs_input_grad[1]:
            columns = structure.columns.reshape(-1)
            bags = torch.arange(len(upstream), device=columns.device, dtype=columns.dtype)
            bag_of = bags.repeat_interleave(structure.columns.shape[1])
            starts = bags * structure.columns.shape[1]
            backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
            grad_values = backward(upstream, features, columns, starts, bag_of, SUM)
        return grad_x, grad_values, None


def fits(positions: Tensor | None, shape: tuple[int, int]) -> bool:
    """Whether every row has the same number of connections, at least one."""
    if positions is None or len(positions) == 0 or len(positions) % shape[0]:
        return False
    firsts = positions.reshape(shape[0], -1)[:, [0, -1]] // shape[1]  # sorted, so that all between are of the same row
    return bool((firsts == torch.arange(shape[0], device=positions.device)[:, None]).all())


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with values (E,)."""
    if positions is None:
        raise ValueError("the condensed kernel was given no positions, but needs the layer's connections; store the layer compressed")
    if not fits(positions, shape):
        raise UnfitStructureError(
            f"the condensed kernel was given {len(positions)} positions of a layer {shape}, but needs equally many in every row; use 'csr'"
        )
    structure = Structure.of(positions, shape)

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = CondensedProduct.apply(x.t(), values, structure).t()  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias

    return product


CONDENSED = Kernel("condensed", "compressed", frozenset({torch.float64, torch.float32}), prepare, fits, made_for=fits)
