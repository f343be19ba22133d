"""Layer norm over units that lie on several ranks: what each computes equals what one process computes on all units.

Ba, Kiros, Hinton 2016, arXiv 1607.06450.

Legend: B samples and positions, S units of this rank times the further normalised dimensions, N all of them, k ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grow.norms import LayerNorm
from hardware.execute.exchange import Peers


class _Normalise(torch.autograd.Function):
    """``share`` are the entries (k,) of every rank; ``mask`` (S...) is zero at a dummy, None where there is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, dims: int, share: tuple[int, ...], epsilon: float, peers: Peers) -> Tensor:
        """X (B, S) -> the normalised x (B, S)."""
        axes = list(range(x.dim() - dims, x.dim()))
        size, total = max(share[peers.rank], 1), sum(share)
        held = x if mask is None else x * mask
        mean = held.sum(axes, keepdim=True) / size
        centred = x - mean if mask is None else (x - mean) * mask
        moments = peers.gather(torch.stack([mean, centred.square().sum(axes, keepdim=True)]))  # (k, 2, B)
        # Chan, Golub, LeVeque 1979: moments of a union from the moments of its parts
        sizes = x.new_tensor(share).view(-1, *[1] * x.dim())
        whole = (moments[:, 0] * sizes).sum(0) / total
        square = (moments[:, 1] + sizes * (moments[:, 0] - whole).square()).sum(0)
        scale = (square / total + epsilon).rsqrt()
        normalised = (x - whole) * scale
        ctx.save_for_backward(normalised, scale, mask)
        ctx.axes, ctx.total, ctx.peers = axes, total, peers
        return normalised

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """The gradient of x sees all ranks through the moments."""
        normalised, scale, mask = ctx.saved_tensors
        upstream = gradients[0] if mask is None else gradients[0] * mask
        shares = torch.stack([upstream.sum(ctx.axes, keepdim=True), (upstream * normalised).sum(ctx.axes, keepdim=True)])
        first, second = ctx.peers.sum(shares) / ctx.total
        gradient = (upstream - first - normalised * second) * scale
        return gradient if mask is None else gradient * mask, None, None, None, None, None


class GlobalLayerNorm(nn.Module):
    """Takes the place of a layer norm, with the rank's own part of its tensors. share: entries of every rank, (k,)."""

    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None

    def __init__(self, norm: LayerNorm, share: tuple[int, ...], mask: Tensor | None, peers: Peers) -> None:
        super().__init__()
        self.weight, self.bias, self.dims, self.eps, self.peers = norm.weight, norm.bias, norm.dims, norm.eps, peers
        self.share = share
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, S) -> (B, S)."""
        out: Tensor = _Normalise.apply(x, self.mask, self.dims, self.share, self.eps, self.peers)  # type: ignore[no-untyped-call]
        out = out if self.weight is None else out * self.weight
        return out if self.bias is None else out + self.bias
