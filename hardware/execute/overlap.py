"""A layer that computes with its own values while those of its halo are still under way, forward and backward.

y = W_own x_own + W_halo x_halo: the first product needs no message, and its backward none but its own gradient. NCCL's messages
run on a stream of their own beside the products; on a worker with one core there is nothing to gain, and two products cost more
than one.

Legend: B batch, S own entries, H entries of the halo with padding, O rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from grow.kernels.dense import masked
from grow.layers import SparseConv2d, SparseLayer
from hardware.execute.exchange import Pending, resized
from hardware.execute.moves import Halo


@dataclass
class _Crossing:
    """One exchange, there and back. ``coming``: values under way; ``returning``: gradients under way."""

    halo: Halo
    coming: Pending
    returning: Pending | None = None


class _Open(torch.autograd.Function):
    """Forward: the values of the halo, as soon as they are here. Backward: their gradients set out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, crossing: _Crossing) -> Tensor:
        """X (B, S) -> (B, H)."""
        ctx.crossing, halo = crossing, crossing.halo
        padding = x.new_zeros(resized(x, halo.at, halo.plan.padding))
        return torch.cat([*halo.finish(crossing.coming), padding], halo.at)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        """What x gets from here is on its way: `_Close` waits for it."""
        crossing: _Crossing = ctx.crossing
        halo = crossing.halo
        *sections, _ = torch.split(gradients[0], [*halo.plan.receives, halo.plan.padding], halo.at)
        crossing.returning = halo.begin(sections, [len(entries) for entries in halo.plan.sends])
        return None, None


class _Close(torch.autograd.Function):
    """The identity. Backward, after all else: gradients that came back are added to those of the own values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, crossing: _Crossing) -> Tensor:
        """X (B, S) as it is."""
        ctx.crossing = crossing
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient (B, S) of the own product -> the whole one."""
        crossing: _Crossing = ctx.crossing
        assert crossing.returning is not None
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        return crossing.halo.added(total, crossing.halo.finish(crossing.returning)), None


class OverlappedLayer(nn.Module):
    """A layer in dense storage with the exchange of its halo, (B, S) -> (B, O). Its columns are the own entries, then the halo's."""

    def __init__(self, layer: SparseLayer, halo: Halo) -> None:
        super().__init__()
        self.layer, self.halo = layer, halo

    def forward(self, x: Tensor) -> Tensor:
        """X (B, S) -> (B, O)."""
        halo, layer = self.halo, self.layer
        crossing = _Crossing(halo, halo.begin(halo.sent(x.detach()), halo.plan.receives))
        x = _Close.apply(x, crossing)  # type: ignore[no-untyped-call]
        weight = masked(layer.weight, layer.mask)
        own, other = torch.split(weight, [halo.plan.own, weight.shape[1] - halo.plan.own], 1)
        product = self._product(x, own, layer.bias)
        values: Tensor = _Open.apply(x, crossing)  # type: ignore[no-untyped-call]
        return product + self._product(values, other, None)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.layer, SparseConv2d):
            return functional.conv2d(x, weight, bias, self.layer.stride, self.layer.padding, self.layer.dilation)
        return functional.linear(x, weight, bias)
