"""Masked dense: the oracle of all other kernels, and the fastest one at high density.

The weight itself is zero where no connection exists, so the forward pass needs no mask; only the weight's gradient does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grow.kernels.base import Kernel, Product
from grow.kernels.compiled import available
from grow.kernels.linear import linear
from grow.kernels.lines import in_parts, loops_are_loaded

MASK_VALUES = 2**17
"""Values of a mask that are applied at a time: they fit half of a core's own cache, usually 1 MiB."""


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
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # it is to be differentiated itself, or written anew by a compiler
            return gradients[0] * mask, None
        return _applied(gradients[0], mask), None


def _applied(gradient: Tensor, mask: Tensor) -> Tensor:
    """The gradient itself, zero where the mask is: a product made it for this weight alone, and another one would have to be written."""
    if gradient.device.type != "cpu":
        return gradient.mul_(mask)
    if loops_are_loaded() and available() and _addressable(gradient) and mask.is_contiguous():
        by_loop(gradient, mask)
    else:
        by_operations(gradient, mask)
    return gradient


def _addressable(gradient: Tensor) -> bool:
    """Whether a loop can write to it: not to one of many that torch computes at once (``is_grads_batched``), which has no memory."""
    if gradient.dtype not in (torch.float32, torch.float64) or not gradient.is_contiguous():
        return False
    try:
        gradient.data_ptr()
    except RuntimeError:
        return False
    return True


def by_loop(gradient: Tensor, mask: Tensor) -> None:
    """Clear a contiguous gradient where the mask is zero."""
    from grow.kernels import loops

    loop = loops.masked(gradient.dtype)
    in_parts(lambda first, last: loop(first, last, gradient.data_ptr(), mask.data_ptr()), gradient.numel(), whole=1)


def by_operations(gradient: Tensor, mask: Tensor) -> None:
    """The same by torch's operations.

    They multiply by booleans one by one. As bytes, turned into numbers within the cache, they take a third of the time; the loop, which
    computes the same bits, takes a quarter of that for 1,024 x 1,024 values, half of it where they have left the caches.
    """
    rows = max(1, MASK_VALUES * len(mask) // max(1, mask.numel()))
    for part, kept in zip(torch.split(gradient, rows), torch.split(mask.view(torch.uint8), rows), strict=True):
        part.mul_(kept.to(part.dtype))


def masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    """The weight as the product sees it. Without a mask, the weight itself."""
    if mask is None:
        return weight
    return MaskGradient.apply(weight, mask)  # type: ignore[no-any-return, no-untyped-call]


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with a dense weight (O, I)."""
    if positions is None:
        return linear
    mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=positions.device)
    mask[positions] = True
    mask = mask.reshape(shape)

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, masked(weight, mask), bias)

    return product


DENSE = Kernel("dense", "dense", frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}), prepare)
