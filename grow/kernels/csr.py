"""Compressed sparse rows through torch: MKL on the CPU, cuSPARSE on the GPU.

All three products run feature-major, (features, batch), where the library's sparse times dense product is fastest. Outputs
are returned as transposed views, so that activations stay feature-major from one sparse layer to the next at no cost.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grow.kernels.base import Kernel, Product

with warnings.catch_warnings():  # torch says once per process that CSR tensors are in beta; the tested range of torch is pinned
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), (1, 1))


@dataclass(frozen=True)
class Structure:
    """Row and column indices of W (O, I) and of its transpose; ``order`` takes values from W's order to the transpose's."""

    shape: tuple[int, int]
    row_starts: Tensor  # (O + 1,)
    columns: Tensor  # (E,)
    column_starts: Tensor  # (I + 1,)
    rows: Tensor  # (E,) in the transpose's order
    order: Tensor  # (E,), 32 bits like the others: structures are as large as what they describe

    @staticmethod
    def of(positions: Tensor, shape: tuple[int, int]) -> Structure:
        """Structure of sorted flat positions (E,) in a weight (O, I)."""
        rows, columns = positions // shape[1], positions % shape[1]
        order = torch.argsort(columns, stable=True)
        return Structure(shape, _starts(rows, shape[0]), columns.int(), _starts(columns, shape[1]), rows[order].int(), order.int())

    def matrix(self, values: Tensor) -> Tensor:
        """W as a CSR tensor (O, I)."""
        return torch.sparse_csr_tensor(self.row_starts, self.columns, values, self.shape, check_invariants=False)

    def transposed(self, values: Tensor) -> Tensor:
        """W^T as a CSR tensor (I, O)."""
        shape = (self.shape[1], self.shape[0])
        return torch.sparse_csr_tensor(self.column_starts, self.rows, values.index_select(0, self.order), shape, check_invariants=False)


def _starts(sorted_or_not: Tensor, length: int) -> Tensor:
    counts = torch.bincount(sorted_or_not, minlength=length)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


class SparseProduct(torch.autograd.Function):
    """``y = W x + b``, feature-major, with W given by its structure and values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure) -> Tensor:
        """Features (I, B), values (E,) and bias (O,) -> (O, B)."""
        features = x.contiguous()
        ctx.save_for_backward(features, values)
        ctx.structure = structure
        found = structure.matrix(values) @ features if values.numel() else x.new_zeros(structure.shape[0], x.shape[1])
        return found if bias is None else found.add_(bias[:, None])  # in place: a second tensor as large would cost time and memory

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients of the features (I, B), the values (E,) and the bias (O,)."""
        features, values = ctx.saved_tensors
        structure: Structure = ctx.structure
        grad_bias = gradients[0].sum(1) if ctx.needs_input_grad[2] else None
        if values.numel() == 0:
            return torch.zeros_like(features), torch.zeros_like(values), grad_bias, None
        upstream = gradients[0].contiguous()  # (O, B)
        grad_x = structure.transposed(values) @ upstream if ctx.needs_input_grad[0] else None
        grad_values = None
        if ctx.needs_input_grad[1]:
            pattern = structure.matrix(values)
            grad_values = torch.sparse.sampled_addmm(pattern, upstream, features.t(), beta=0.0).values()
        return grad_x, grad_values, grad_bias, None


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with values (E,)."""
    if positions is None:
        raise ValueError("the csr kernel was given no positions, but needs the layer's connections; store the layer compressed")
    structure = Structure.of(positions, shape)

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = SparseProduct.apply(x.t(), values, bias, structure)  # type: ignore[no-untyped-call]
        return y.t()

    return product


CSR = Kernel("csr", "compressed", frozenset({torch.float64, torch.float32}), prepare)
