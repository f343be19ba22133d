"""Norms across units, whose sizes follow the network. torch's own hold them as numbers and cannot be edited.

Legend: B batch, C units.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class LayerNorm(nn.Module):
    """Normalises the last ``dims`` dimensions of x (B, ..., C); weight and bias have their shape."""

    def __init__(self, module: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = module.weight, module.bias
        self.dims, self.eps = len(module.normalized_shape), module.eps

    def forward(self, x: Tensor) -> Tensor:
        """X (B, ..., C) -> the same shape."""
        return functional.layer_norm(x, x.shape[-self.dims :], self.weight, self.bias, self.eps)


class GroupNorm(nn.Module):
    """Normalises groups of ``channels`` neighbouring channels of x (B, C, ...); a group is a unit."""

    def __init__(self, module: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = module.weight, module.bias
        self.channels, self.eps = module.num_channels // module.num_groups, module.eps

    def forward(self, x: Tensor) -> Tensor:
        """X (B, C, ...) -> the same shape."""
        return functional.group_norm(x, x.shape[1] // self.channels, self.weight, self.bias, self.eps)
