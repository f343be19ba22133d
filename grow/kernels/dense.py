"""Masked dense: the oracle of all other kernels, and the fastest one at high density.

The weight itself is zero where no connection exists, so the forward pass needs no mask; only the weight's gradient does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from grow.kernels.base import Kernel, Product


class MaskGradient(torch.autograd.Function):
    """The identity, whose gradient is zero where the mask is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        """Weight and boolean mask of the same shape -> the weight."""
        ctx.save_for_backward(mask)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The masked gradient."""
        (mask,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # it is to be differentiated itself
            return gradients[0] * mask, None
        return gradients[0].mul_(mask), None  # a product made it for this weight alone; to write another costs more than to multiply


def masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    """The weight as the product sees it. Without a mask, the weight itself."""
    if mask is None:
        return weight
    return MaskGradient.apply(weight, mask)  # type: ignore[no-any-return, no-untyped-call]


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with a dense weight (O, I)."""
    if positions is None:
        return functional.linear
    mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=positions.device)
    mask[positions] = True
    mask = mask.reshape(shape)
    of_dtype: dict[torch.dtype, Tensor] = {}  # numbers, since a product with a boolean mask takes five times as long

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.dtype not in of_dtype:
            of_dtype[weight.dtype] = mask.to(weight.dtype)
        return functional.linear(x, masked(weight, of_dtype[weight.dtype]), bias)

    return product


DENSE = Kernel("dense", "dense", frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}), prepare)
