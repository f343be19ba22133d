"""What a kernel is, and the case that it is chosen for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Storage: TypeAlias = Literal["dense", "compressed"]
"""``dense``: a weight (O, I) with a mask. ``compressed``: values (E,) with their positions."""

Product: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x (B, I), weight (O, I) or values (E,), bias (O,) or None -> (B, O)."""


@dataclass(frozen=True)
class Geometry:
    """A convolution's weight (O, I, kh, kw) and its steps, each in rows and columns."""

    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


Convolve: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor | None]
"""x (B, I, H, W), values (E,), bias (O,) or None -> (B, O, H', W'); None where a product with patches is cheaper."""


@dataclass(frozen=True)
class KernelCase:
    """What the time of a kernel depends on: the product (batch, columns) x (columns, rows) at a density, on a kind of device.

    A convolution counts its input channels times its taps as columns, and its output positions times the samples as batch. padded: its
    maps come out as large as they go in, or smaller because it strides. input_gradient: that of what is read is computed too, as
    everywhere but in a first layer. devices: those that compute at once, and share memory and power.
    """

    rows: int
    columns: int
    density: float
    batch: int
    device: str
    convolution: bool = False
    unfit: frozenset[str] = frozenset()
    """Kernels that cannot compute the layer's structure."""
    suited: frozenset[str] = frozenset()
    """Of those that are made for some structures, the ones that are made for the layer's."""
    taps: int = 1
    padded: bool = True
    input_gradient: bool = True
    devices: int = 1


class UnfitStructureError(ValueError):
    """A layer's connections have not the structure that a kernel is made for."""


def any_structure(positions: Tensor | None, shape: tuple[int, int]) -> bool:
    """What most kernels fit."""
    return True


@dataclass(frozen=True)
class Kernel:
    """A way to compute ``y = x W^T + b`` and its gradients.

    ``prepare`` takes sorted flat positions (E,) (None: all exist) and the shape (O, I) and returns the product for this
    structure; it is called once per edit. Kernels refuse dtypes that they do not declare, and others take their place: "dense". One that
    is made for some structures says by ``fits`` which; where an edit leads away from them, ``otherwise`` takes over.
    """

    name: str
    storage: Storage
    dtypes: frozenset[torch.dtype]
    prepare: Callable[[Tensor | None, tuple[int, int]], Product]
    fits: Callable[[Tensor | None, tuple[int, int]], bool] = any_structure
    otherwise: str = "csr"
    made_for: Callable[[Tensor | None, tuple[int, int]], bool] | None = None
    """The structures, of those that fit, for which the kernel is fast and its times are measured; None: all."""
    convolution: Callable[[Tensor, Geometry], Convolve | None] | None = None
    """Positions and geometry of a convolution -> one that needs no patches, where the kernel has such."""
    prepare_graph: Callable[[Tensor | None, tuple[int, int]], Product] | None = None
    """In place of ``prepare`` for a graph under compilation, which can prepare nothing by itself; None: the same."""

    def product(self, positions: Tensor | None, shape: tuple[int, int], graph: bool = False) -> Product:
        """What ``prepare`` gives; ValueError for an x or a bias that does not fit the weight, instead of what lies behind their end."""
        prepare = self.prepare_graph if graph and self.prepare_graph is not None else self.prepare
        product = prepare(positions, shape)

        def checked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            refuse_unfit(x, weight, bias, shape[1])
            return product(x, weight, bias)

        return checked

    def convolve(self, positions: Tensor | None, geometry: Geometry) -> Convolve | None:
        """What ``convolution`` gives, where the kernel has such and it suits the geometry; refuses as ``product`` does."""
        found = None if self.convolution is None or positions is None else self.convolution(positions, geometry)
        if found is None:
            return None
        convolve = found

        def checked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
            refuse_unfit(x, weight, bias, geometry.shape[1])
            return convolve(x, weight, bias)

        return checked


def refuse_unfit(x: Tensor, weight: Tensor, bias: Tensor | None, features: int) -> None:
    """ValueError where x (B, features, ...) or the bias is not what the weight is multiplied with.

    A kernel's structure alone says which memory it reads, and the weight's dtype how.
    """
    if x.shape[1] != features:
        raise ValueError(f"x has {x.shape[1]} features, but must have {features}, as many as the layer reads; check what comes before it")
    for name, given in (("x", x), ("the bias", bias)):
        if given is not None and given.dtype != weight.dtype:
            raise ValueError(f"dtype of {name} is {given.dtype}, but must be the weight's, {weight.dtype}; convert one of them")
        if given is not None and given.device != weight.device:
            raise ValueError(f"device of {name} is {given.device}, but must be the weight's, {weight.device}; move one of them")
