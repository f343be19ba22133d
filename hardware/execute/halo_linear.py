"""A linear layer with the exchange of its halo, for workers that compute and send with one core.

Forward: the halo first, then one product, since two products cost more than one. Backward: the gradients of the halo set out before the
weight's gradient is computed, and are back when it is done, so that ranks of slightly different speed do not wait for each other:

    g W  ->  halo's gradients set out  ->  g^T x, sum of g  ->  what came back is added

Legend: B batch, S own entries, H entries of the halo with padding, O rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grow.kernels.linear import input_gradient, linear, weight_gradient
from grow.layers import SparseLinear
from hardware.execute.moves import Halo


class _Product(torch.autograd.Function):
    """``y = W [x, halo] + b``, one node of the graph on every rank, so that all exchange in one order whatever their kernels are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: SparseLinear, halo: Halo) -> Tensor:
        """X (B, S), weight (O, S + H) or its values (E,), bias (O,) -> (B, O)."""
        values = halo.forward(x)
        ctx.layer, ctx.halo = layer, halo
        if layer.storage == "dense":
            ctx.save_for_backward(values, weight)
            return linear(values, weight, bias)
        leaves = [tensor.detach().requires_grad_(needed) for tensor, needed in _needed((values, weight, bias), ctx.needs_input_grad)]
        with torch.enable_grad():
            y = layer.product()(leaves[0], leaves[1], leaves[2] if bias is not None else None)
        ctx.inner = leaves, y
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        (upstream,), halo, layer = gradients, ctx.halo, ctx.layer
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        if layer.storage != "dense":
            leaves, y = ctx.inner
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, upstream))
            inner, grad_weight, grad_bias = (next(found) if needed else None for needed in (of_x, of_weight, of_bias))
            return None if inner is None else halo.backward(inner), grad_weight, grad_bias, None, None
        values, weight = ctx.saved_tensors
        inner = input_gradient(upstream, weight) if of_x else None  # (B, S + H)
        returning = None if inner is None else halo.set_out(inner)
        grad_weight = weight_gradient(upstream, values) if of_weight else None
        if grad_weight is not None and layer.mask is not None:
            grad_weight *= layer.mask
        grad_bias = upstream.sum(0) if of_bias else None
        grad_x = None if inner is None or returning is None else halo.come_back(inner, returning)
        return grad_x, grad_weight, grad_bias, None, None


def _needed(tensors: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> list[tuple[Tensor, bool]]:
    return [(tensor, wanted) for tensor, wanted in zip(tensors, needed, strict=False) if tensor is not None]


class HaloLinear(nn.Module):
    """A linear layer with the exchange of its halo, (B, S) -> (B, O). Its columns are the own entries, then the halo's."""

    def __init__(self, layer: SparseLinear, halo: Halo) -> None:
        super().__init__()
        self.layer, self.halo = layer, halo

    def forward(self, x: Tensor) -> Tensor:
        """X (B, S) -> (B, O)."""
        y: Tensor = _Product.apply(x, self.layer.weight, self.layer.bias, self.layer, self.halo)  # type: ignore[no-untyped-call]
        return y
