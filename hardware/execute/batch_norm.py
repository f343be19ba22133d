"""Batch norm over the batch of all ranks: what each rank computes equals what one process computes on the whole batch.

Ioffe and Szegedy 2015, arXiv 1502.03167. torch's SyncBatchNorm does the same on GPUs only.

Legend: B samples of this rank, C units, N values of one unit over all ranks, k ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.execute.exchange import Peers


class _Normalise(torch.autograd.Function):
    """Passes over the values are torch's own of a batch norm: on a processor they take a tenth of ``var_mean`` and of single operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, peers: Peers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X (B, C, ...) -> the normalised x, mean (C,), unbiased variance (C,), N."""
        units, size = x.shape[1], x.numel() // x.shape[1]
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0) if size else (x.new_zeros(units), x.new_zeros(units))
        gathered = peers.gather(torch.cat([mean, variance * size, x.new_full((1,), size)]))  # (k, 2 C + 1)
        means, squares, sizes = torch.split(gathered, [units, units, 1], 1)
        # Chan, Golub, LeVeque 1979: moments of a union from the moments of its parts
        total = sizes.sum()
        mean = (means * sizes).sum(0) / total
        square = (squares + sizes * (means - mean).square()).sum(0)
        variance = square / total
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.peers, ctx.epsilon = peers, epsilon
        ctx.mark_non_differentiable(mean, square, total)
        return functional.batch_norm(x, mean, variance, weight, bias, eps=epsilon), mean, square / (total - 1), total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """The gradient of x sees all ranks through the moments; those of weight and bias are this rank's share."""
        x, weight, mean, variance, total = ctx.saved_tensors
        upstream = gradients[0]
        shares = x.new_zeros(2, len(weight))
        if len(x):  # of normalised x: sum of upstream x, and of upstream
            fixed = (weight, mean, variance, None, None, False, ctx.epsilon)
            shares = torch.stack(torch.ops.aten.native_batch_norm_backward(upstream, x, *fixed, [False, True, True])[1:])
        weight_sum, bias_sum = ctx.peers.sum(shares) / total
        shape = (1, len(weight), *[1] * (x.dim() - 2))
        scale = (variance + ctx.epsilon).rsqrt()
        # weight scale (upstream - bias_sum - (x - mean) scale weight_sum), in place
        factor = weight * scale
        gradient = (x - mean.view(shape)).mul_((-factor * scale * weight_sum).view(shape))
        gradient.addcmul_(upstream, factor.view(shape)).sub_((factor * bias_sum).view(shape))
        return gradient, shares[0], shares[1], None, None


class GlobalBatchNorm(nn.Module):
    """Takes the place of a batch norm, with its tensors, where every rank holds a part of the batch."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, peers: Peers) -> None:
        super().__init__()
        self.peers, self.eps, self.momentum = peers, norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, C, ...) -> (B, C, ...)."""
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        weight = x.new_ones(x.shape[1]) if self.weight is None else self.weight
        bias = x.new_zeros(x.shape[1]) if self.bias is None else self.bias
        out, mean, variance, total = _Normalise.apply(x, weight, bias, self.eps, self.peers)  # type: ignore[no-untyped-call]
        if float(total) <= 1:
            raise ValueError(f"batch has {int(total)} values per unit, but must have at least 2 for batch norm; use a larger batch")
        if self.training and self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)
        normalised: Tensor = out
        return normalised
