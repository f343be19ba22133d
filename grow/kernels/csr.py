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
from grow.kernels.opaque import opaque
from grow.kernels.orders import by_columns, by_rows

with warnings.catch_warnings():  # torch says once per process that CSR tensors are in beta; the tested range of torch is pinned
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), (1, 1))

TILE = 512
"""Samples that the CPU multiplies at a time, so that what one row reads is still in the cache when the next one reads it."""

TILED_BYTES = 16 * 2**20
"""Features of as many bytes or more are multiplied by tiles. Smaller ones stay in the last cache (of 32 MiB where it was measured,
`tests.benchmarks.csr_tiling`) together with what comes out, and copying the tiles costs more than it saves: up to half of the speed."""


@dataclass(frozen=True)
class Structure:
    """Row and column indices of W (O, I) and of its transpose; ``order`` takes values from W's order to the transpose's."""

    shape: tuple[int, int]
    row_starts: Tensor  # (O + 1,)
    columns: Tensor  # (E,)
    column_starts: Tensor  # (I + 1,)
    rows: Tensor  # (E,) in the transpose's order
    order: Tensor  # (E,)

    @staticmethod
    def of(positions: Tensor, shape: tuple[int, int]) -> Structure:
        """Structure of sorted flat positions (E,) in a weight (O, I)."""
        row_starts, columns = by_rows(positions, shape)
        return Structure(shape, row_starts, columns, *by_columns(row_starts, columns, shape[1]))


def _tile(*features: Tensor) -> int:
    """Samples to multiply at a time, of features each (n, B): all of them where the CPU's caches are not what counts."""
    batch = features[0].shape[1]
    return TILE if features[0].device.type == "cpu" and max(each.nbytes for each in features) >= TILED_BYTES else batch


def _tiles(features: Tensor, tile: int) -> list[Tensor]:
    """Features (n, B) by tiles of the batch, each on its own."""
    if features.shape[1] <= tile:
        return [features]
    return [part.contiguous() for part in torch.split(features, tile, 1)]


@opaque("csr_product", lambda values, starts, indices, rows, features: features.new_empty(rows, features.shape[1]))
def matrix_product(values: Tensor, starts: Tensor, indices: Tensor, rows: int, features: Tensor) -> Tensor:
    """A matrix (rows, n) by values (E,), row starts and column indices, times features (n, B) -> (rows, B)."""
    if values.numel() == 0:
        return features.new_zeros(rows, features.shape[1])
    matrix = torch.sparse_csr_tensor(starts, indices, values, (rows, features.shape[0]), check_invariants=False)
    products: list[Tensor] = [matrix @ tile for tile in _tiles(features, _tile(features))]
    return products[0] if len(products) == 1 else torch.cat(products, 1)


@opaque("csr_sampled", lambda values, starts, indices, upstream, features: torch.empty_like(values))
def sampled_product(values: Tensor, starts: Tensor, indices: Tensor, upstream: Tensor, features: Tensor) -> Tensor:
    """The entries (E,) of upstream (O, B) times features (I, B) transposed at the positions of the values."""
    if values.numel() == 0:
        return torch.zeros_like(values)
    pattern = torch.sparse_csr_tensor(starts, indices, values, (upstream.shape[0], features.shape[0]), check_invariants=False)
    tile = _tile(upstream, features)
    tiles = zip(_tiles(upstream, tile), _tiles(features, tile), strict=True)
    found: list[Tensor] = [torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0).values() for left, right in tiles]
    for other in found[1:]:
        found[0] += other
    return found[0]


class SparseProduct(torch.autograd.Function):
    """``y = x W^T + b``, computed feature-major, with W given by its structure and values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure) -> Tensor:
        """X (B, I), values (E,) and bias (O,) -> (B, O)."""
        features = x.t().contiguous()  # (I, B)
        ctx.save_for_backward(features, values)
        ctx.structure = structure
        found = matrix_product(values, structure.row_starts, structure.columns, structure.shape[0], features)
        if bias is not None:
            found.add_(bias[:, None])  # in place: a second tensor as large would cost time and memory
        return found.t() if torch.compiler.is_compiling() else found.t_()  # no view, which autograd would not let anybody change

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients of x (B, I), the values (E,) and the bias (O,)."""
        features, values = ctx.saved_tensors
        structure: Structure = ctx.structure
        grad_bias = gradients[0].sum(0) if ctx.needs_input_grad[2] else None
        upstream = gradients[0].t().contiguous()  # (O, B)
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = matrix_product(
                values.index_select(0, structure.order), structure.column_starts, structure.rows, structure.shape[1], upstream
            ).t()
        if ctx.needs_input_grad[1]:
            grad_values = sampled_product(values, structure.row_starts, structure.columns, upstream, features)
        return grad_x, grad_values, grad_bias, None


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with values (E,)."""
    if positions is None:
        raise ValueError("the csr kernel was given no positions, but needs the layer's connections; store the layer compressed")
    structure = Structure.of(positions, shape)

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return SparseProduct.apply(x, values, bias, structure)  # type: ignore[no-any-return, no-untyped-call]

    return product


CSR = Kernel("csr", "compressed", frozenset({torch.float64, torch.float32}), prepare)
