"""Norms whose sizes follow the network. torch's own hold them as numbers and cannot be edited.

Legend: B batch, C units, H W a feature map.
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


class InstanceNorm(nn.Module):
    """Normalises every channel of every sample of x (B, C, H, W) by itself, in evaluation by running statistics where it has them."""

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, module: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = module.weight, module.bias
        self.eps, self.momentum = module.eps, module.momentum
        self.register_buffer("running_mean", module.running_mean)
        self.register_buffer("running_var", module.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, C, H, W) -> the same shape."""
        own = self.training or self.running_mean is None
        momentum = 0.0 if self.momentum is None else self.momentum
        return functional.instance_norm(x, self.running_mean, self.running_var, self.weight, self.bias, own, momentum, self.eps)


class RMSNorm(nn.Module):
    """Divides the last ``dims`` dimensions of x (B, ..., C) by their root mean square; weight has their shape.

    Zhang and Sennrich 2019, arXiv 1910.07467.
    """

    def __init__(self, module: nn.RMSNorm) -> None:
        super().__init__()
        self.weight, self.dims, self.eps = module.weight, len(module.normalized_shape), module.eps

    def forward(self, x: Tensor) -> Tensor:
        """X (B, ..., C) -> the same shape."""
        return functional.rms_norm(x, list(x.shape[-self.dims :]), self.weight, self.eps)
