"""Linear and convolutional layers whose connections are a choice.

One logical layer, two storages: ``dense`` keeps a weight (O, I, *kernel) that is zero where no connection exists, ``compressed``
keeps the values (E,) of the existing connections in the order of their flat positions. Converting loses no bit.

Legend: B batch, O / I target / source entries, T taps of the kernel, E connections, P output positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from grow.axes import IntArray
from grow.kernels import KERNELS, Product, Storage
from grow.kernels.base import Convolve, Geometry
from grow.kernels.dense import masked
from grow.kernels.linear import linear

UNPREPARED = "products are prepared outside of the graph; call network.compile() in place of torch.compile(network)"


@dataclass(frozen=True, eq=False)
class Structure:
    """Which connections a layer has, and the kernel that computes it. mask: (O, I, *kernel), where a dense weight needs one."""

    shape: tuple[int, ...]
    kernel: str
    positions: Tensor | None
    mask: Tensor | None

    @staticmethod
    def of(shape: tuple[int, ...], index: IntArray | None, kernel: str, device: torch.device, mask: Tensor | None = None) -> Structure:
        """The structure with these sorted flat positions; None: all exist. ``mask``: theirs, where it is known."""
        dense = KERNELS[kernel].storage == "dense"
        if index is None and not dense:
            index = np.arange(prod(shape))
        if index is not None and dense and len(index) == prod(shape):
            index = None  # as it is without the compressed kernel that it comes from, and in a checkpoint
        if index is None:
            return Structure(shape, kernel, None, None)
        positions = torch.from_numpy(np.ascontiguousarray(index)).to(device)
        if not dense:
            return Structure(shape, kernel, positions, None)
        return Structure(shape, kernel, positions, mask_at(positions, shape) if mask is None else mask)


class SparseLayer(nn.Module):
    """What linear and convolutional layers share: a weight in one of two storages, and the positions that it holds.

    ``positions`` (E,) are the sorted flat positions of the connections in weight coordinates, None when all exist.
    """

    positions: Tensor | None
    mask: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight_shape = tuple(weight.shape)
        self.weight = copied(weight)
        self.bias = None if bias is None else copied(bias)
        self.kernel = "dense"
        self.register_buffer("positions", None)
        self.register_buffer("mask", None, persistent=False)
        self._product: Product | None = None
        self._convolution: Convolve | None = None

    @property
    def storage(self) -> Storage:
        """How the weight is held now."""
        return KERNELS[self.kernel].storage

    @property
    def connections(self) -> int:
        """Connections that exist."""
        return prod(self.weight_shape) if self.positions is None else len(self.positions)

    @property
    def density(self) -> float:
        """Share of the possible connections that exist."""
        return self.connections / prod(self.weight_shape)

    def index(self) -> IntArray | None:
        """Sorted flat positions of the connections, None when all exist."""
        return None if self.positions is None else self.positions.cpu().numpy()

    def dense_weight(self) -> Tensor:
        """The weight (O, I, *kernel), zero where no connection exists. Detached."""
        weight = self.weight.detach()
        return weight if self.storage == "dense" else expand(weight, self.positions, self.weight_shape)

    def restructure(self, shape: tuple[int, ...], index: IntArray | None, kernel: str, weight: nn.Parameter) -> None:
        """Take on another structure. ``weight`` is in the kernel's storage."""
        structure = Structure.of(shape, index, kernel, weight.device)
        self.weight = weight
        self.take_on(structure)

    def take_on(self, structure: Structure) -> None:
        """Take on a structure that fits the weight. Nothing is computed, so that nothing can fail."""
        # As plain assignments would do it, which a module takes a tenth of an edit's time for.
        self.__dict__.update(weight_shape=structure.shape, kernel=structure.kernel, _product=None, _convolution=None)
        self._buffers.update(positions=structure.positions, mask=structure.mask)

    def product(self) -> Product:
        """The kernel's product for the present structure, prepared once per edit."""
        return self._prepared() if self._product is None else self._product

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """To another device or dtype, where the product is prepared anew."""
        self._product = self._convolution = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def prepare(self) -> None:
        """Prepare the kernel's product for graphs under compilation now, where one is needed, instead of when it is first used."""
        if self.storage == "compressed":
            self._prepared(graph=True)

    @torch.compiler.disable(reason=UNPREPARED)  # type: ignore[no-untyped-call,untyped-decorator]
    def _prepared(self, graph: bool = False) -> Product:
        kernel, dtype = KERNELS[self.kernel], self.weight.dtype
        if dtype not in kernel.dtypes:
            known = ", ".join(sorted(str(known) for known in kernel.dtypes))
            raise ValueError(f"dtype of the weight is {dtype}, but must be one of {known} for kernel {self.kernel!r}; use another kernel")
        rows, columns = self.weight_shape[0], prod(self.weight_shape[1:])
        self._product = kernel.product(self.positions, (rows, columns), graph)
        return self._product

    def multiply(self, x: Tensor) -> Tensor:
        """X (B, I) by the kernel's product -> (B, O)."""
        result = self._in_autocast(self.product(), x)
        assert result is not None
        return result

    def _in_autocast(self, function: Convolve, x: Tensor) -> Tensor | None:
        """What a function of x, weight and bias gives.

        Under autocast the result has its dtype, as with torch's own layers. A kernel that does not know that dtype computes in the
        weight's.
        """
        kind = x.device.type
        if not torch.is_autocast_enabled(kind) or self.weight.dtype == torch.float64:
            return function(x, self.weight, self.bias)
        wanted = torch.get_autocast_dtype(kind)
        dtype = wanted if wanted in KERNELS[self.kernel].dtypes else self.weight.dtype
        with torch.autocast(kind, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            result = function(x.to(dtype), self.weight.to(dtype), bias)
            return None if result is None else result.to(wanted)

    def extra_repr(self) -> str:
        """Shape, density and kernel."""
        return f"{' x '.join(map(str, self.weight_shape))}, density={self.density:.4g}, kernel={self.kernel}"


class SparseLinear(SparseLayer):
    """``y = x W^T + b`` over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """X (B, ..., I) -> (B, ..., O)."""
        if self.storage == "dense":
            return linear(x, masked(self.weight, self.mask), self.bias)
        if x.dim() == 2:
            return self.multiply(x)
        return self.multiply(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.weight_shape[0])


class SparseConv2d(SparseLayer):
    """A convolution whose connections are single taps of kernel slices.

    In a depthwise one every input channel has ``multiplier`` output channels of its own, and the weight is (O, 1, *kernel); in
    all others ``multiplier`` is 0.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        multiplier: int = 0,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.padding, self.dilation, self.multiplier = stride, padding, dilation, multiplier

    @property
    def groups(self) -> int:
        """Groups of channels that are computed apart: as many as input channels in a depthwise convolution, else 1."""
        return self.weight_shape[0] // self.multiplier if self.multiplier else 1

    def forward(self, x: Tensor) -> Tensor:
        """X (B, I, H, W) -> (B, O, H', W')."""
        if self.storage == "dense" or self.multiplier:  # no product of a matrix: depthwise values are spread out first
            weight = masked(self.weight, self.mask) if self.storage == "dense" else self._spread()
            return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if x.dim() != 4 or x.shape[1] != self.weight_shape[1]:  # patches of other maps might be as wide
            raise ValueError(f"shape of x is {tuple(x.shape)}, but must be (batch, {self.weight_shape[1]}, height, width); reshape x")
        without_patches = self._without_patches(x)
        if without_patches is not None:
            return without_patches
        kernel = (self.weight_shape[2], self.weight_shape[3])
        patches = functional.unfold(x, kernel, self.dilation, self.padding, self.stride)  # (B, I*T, P)
        flat = patches.transpose(0, 1).reshape(patches.shape[1], -1).t()  # (B*P, I*T), a view of feature-major memory
        outputs = self.multiply(flat)  # (B*P, O)
        height, width = (
            (size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for size, pad, dilation, taps, stride in zip(x.shape[2:], self.padding, self.dilation, kernel, self.stride, strict=True)
        )
        return outputs.t().reshape(self.weight_shape[0], x.shape[0], height, width).transpose(0, 1)

    def _without_patches(self, x: Tensor) -> Tensor | None:
        """The output (B, O, H', W') where the kernel has a convolution of its own that suits; a graph under compilation has patches."""
        kernel = KERNELS[self.kernel]
        if kernel.convolution is None or torch.compiler.is_compiling():
            return None
        if self._convolution is None:
            self._convolution = kernel.convolve(self.positions, Geometry(self.weight_shape, self.stride, self.padding, self.dilation))
        return None if self._convolution is None else self._in_autocast(self._convolution, x)

    def _spread(self) -> Tensor:
        """Compressed values as a weight (O, 1, *kernel), with their gradient."""
        assert self.positions is not None
        flat = self.weight.new_zeros(prod(self.weight_shape)).index_put((self.positions,), self.weight)
        return flat.reshape(self.weight_shape)


def copied(parameter: Tensor) -> nn.Parameter:
    """A parameter of its own with the same values, trained if the given one is."""
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def mask_at(positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """True at flat positions (E,), in (O, I, *kernel)."""
    mask = torch.zeros(prod(shape), dtype=torch.bool, device=positions.device)
    if positions.device.type == "cpu":
        mask.numpy()[positions.numpy()] = True  # torch's takes two to three times as long on the CPU
    else:
        mask[positions] = True
    return mask.reshape(shape)


def expand(values: Tensor, positions: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Compressed values (E,) -> dense (O, I, *kernel), zero where no connection exists."""
    if positions is None:
        return values.reshape(shape)
    return values.new_zeros(prod(shape)).scatter_(0, positions, values).reshape(shape)


def sparse_layer(module: nn.Linear | nn.Conv2d) -> SparseLinear | SparseConv2d:
    """The sparse counterpart of a torch layer, with the same weights and all connections."""
    bias = None if module.bias is None else module.bias
    if isinstance(module, nn.Linear):
        return SparseLinear(module.weight, bias)
    stride, padding, dilation = ((value[0], value[1]) for value in (module.stride, _padding(module), module.dilation))
    multiplier = 0 if module.groups == 1 else module.out_channels // module.in_channels
    return SparseConv2d(module.weight, bias, stride, padding, dilation, multiplier)


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    """Pixels on each side; the tracer refuses 'same' where it differs between the sides."""
    if module.padding == "same":
        return tuple(dilation * (taps - 1) // 2 for dilation, taps in zip(module.dilation, module.kernel_size, strict=True))
    return (0, 0) if isinstance(module.padding, str) else module.padding
