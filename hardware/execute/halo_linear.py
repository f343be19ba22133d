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

from grow.layers import SparseLinear
from hardware.execute.moves import Halo


class _Product(torch.autograd.Function):
    """``y = W [x, halo] + b``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, halo: Halo) -> Tensor:
        """X (B, S), weight and mask (O, S + H), bias (O,) -> (B, O)."""
        values = halo.forward(x)
        ctx.save_for_backward(values, weight, mask)
        ctx.halo = halo
        return nn.functional.linear(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of x, weight and bias."""
        (upstream,), halo = gradients, ctx.halo
        values, weight, mask = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        inner = upstream @ weight if of_x else None  # (B, S + H)
        returning = None if inner is None else halo.set_out(inner)
        grad_weight = upstream.t() @ values if of_weight else None
        if grad_weight is not None and mask is not None:
            grad_weight *= mask
        grad_bias = upstream.sum(0) if of_bias else None
        grad_x = None if inner is None or returning is None else halo.come_back(inner, returning)
        return grad_x, grad_weight, grad_bias, None, None


class HaloLinear(nn.Module):
    """A linear layer in dense storage with the exchange of its halo, (B, S) -> (B, O). Its columns are the own entries, then the halo's."""

    def __init__(self, layer: SparseLinear, halo: Halo) -> None:
        super().__init__()
        self.layer, self.halo = layer, halo

    def forward(self, x: Tensor) -> Tensor:
        """X (B, S) -> (B, O)."""
        layer = self.layer
        y: Tensor = _Product.apply(x, layer.weight, layer.bias, layer.mask, self.halo)  # type: ignore[no-untyped-call]
        return y
