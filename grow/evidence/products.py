"""Sums of products of what a layer read and the gradient of what it gave out: dense gradients, and squares of single samples' gradients.

A sum is held as its factors x and g, or as the dense tensor, whichever is smaller: for a wide layer the factors, of which blocks of
rows are computed when asked for; for a convolution on large feature maps the tensor, of the size of the weight.

Legend: B samples, P positions at which one sample uses the weight (places of a feature map, of a sequence), T kernel taps,
O / I target and source entries, G groups of a convolution, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from grow.axes import IntArray
from grow.layers import SparseConv2d, SparseLinear

Layer: TypeAlias = SparseLinear | SparseConv2d
Form: TypeAlias = Literal["product", "squares", "separable"]

SAMPLE_VALUES = 2**22
"""Values of per-sample products held at once, 16 MiB in float32."""


@dataclass(frozen=True, eq=False)
class Term:
    """One batch's share of a sum: ``scale`` times the product of g and x, or the sum over the samples of each one's squared product.

    separable: g holds squares already, and every sample uses the weight once, so that squares of products are products of squares.
    """

    x: Tensor  # (B, ..., I), (B, I, H, W)
    g: Tensor  # (B, ..., O), (B, O, H', W')
    form: Form
    scale: float

    @property
    def values(self) -> int:
        """Values held."""
        return self.x.numel() + self.g.numel()


class Products:
    """A growing sum of terms of one layer, for all of its rows or only for some; a term's g has these rows only."""

    def __init__(self, layer: Layer, rows: IntArray | None) -> None:
        self._layer, self._rows = layer, rows
        self._shape = (layer.weight_shape[0] if rows is None else len(rows), *layer.weight_shape[1:])
        self._terms: list[Term] = []
        self._dense: Tensor | None = None

    def add(self, x: Tensor, g: Tensor, form: Form, scale: float = 1.0) -> None:
        """Add one batch. x and g are kept, not copied."""
        if form == "squares" and isinstance(self._layer, SparseLinear) and x.ndim == 2:
            g, form = g.square(), "separable"
        self._terms.append(Term(x, g, form, scale))
        if sum(term.values for term in self._terms) > prod(self._shape):
            self._dense = self.rows(0, self._shape[0])
            self._terms = []

    def fade(self, factor: float) -> None:
        """Multiply all that was added so far."""
        self._terms = [Term(term.x, term.g, term.form, term.scale * factor) for term in self._terms]
        if self._dense is not None:
            self._dense = self._dense * factor

    def rows(self, start: int, stop: int) -> Tensor:
        """The sum for the rows from ``start`` to ``stop``, counted among those that it is for: (R, I, *kernel). Not to be changed."""
        stop = min(stop, self._shape[0])
        total = None if self._dense is None else self._dense[start:stop]
        for term in self._terms:
            part = self._part(term, start, stop)
            part = part if term.scale == 1.0 else part * term.scale
            total = part if total is None else total + part
        if total is None:
            total = self._layer.weight.new_zeros(stop - start, *self._shape[1:]).detach()
        return total

    def _part(self, term: Term, start: int, stop: int) -> Tensor:
        layer, shape = self._layer, (stop - start, *self._shape[1:])
        if isinstance(layer, SparseLinear):
            g = term.g[..., start:stop]
            match term.form:
                case "product":
                    return g.reshape(-1, g.shape[-1]).T @ term.x.reshape(-1, term.x.shape[-1])
                case "separable":
                    return g.T @ term.x.square()
            pairs = _samples(term.x.flatten(1, -2), g.flatten(1, -2).transpose(1, 2), prod(shape))
            return _sum((torch.bmm(some_g, some_x) for some_x, some_g in pairs), term.form, shape)
        g = term.g[:, start:stop]
        if term.form == "product" and (layer.groups == 1 or g.shape[1] == layer.weight_shape[0]):
            found: Tensor = conv2d_weight(term.x, shape, g, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[no-untyped-call]
            return found
        return _sum(self._sample_products(term.x, g, start, stop), term.form, shape)

    def _sample_products(self, x: Tensor, g: Tensor, start: int, stop: int) -> Iterator[Tensor]:
        """Gradients of single samples, some samples at a time: (B, R, I*T)."""
        layer = self._layer
        assert isinstance(layer, SparseConv2d)
        height, width = layer.weight_shape[2:]
        entries = prod(layer.weight_shape[1:])
        most = max((stop - start) * entries, x.shape[1] * height * width * prod(g.shape[2:]))
        for some_x, some_g in _samples(x, g.flatten(2), most):
            patches = functional.unfold(some_x, (height, width), layer.dilation, layer.padding, layer.stride)  # (B, G*I*T, P)
            if layer.groups == 1:
                yield torch.bmm(some_g, patches.transpose(1, 2))
                continue
            group = self._groups(start, stop).to(x.device)  # (R,)
            own = patches.reshape(len(patches), layer.groups, entries, -1)[:, group]  # (B, R, I*T, P)
            yield (own @ some_g[..., None]).squeeze(3)

    def _groups(self, start: int, stop: int) -> Tensor:
        """Group of every row."""
        assert isinstance(self._layer, SparseConv2d)
        rows = torch.arange(self._layer.weight_shape[0]) if self._rows is None else torch.from_numpy(self._rows)
        return rows[start:stop] // (self._layer.weight_shape[0] // self._layer.groups)


def _samples(x: Tensor, g: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A few samples at a time, such that ``most`` values a sample stay within `SAMPLE_VALUES`."""
    size = max(1, SAMPLE_VALUES // max(1, most))
    return zip(torch.split(x, size), torch.split(g, size), strict=True)


def _sum(products: Iterator[Tensor], form: Form, shape: tuple[int, ...]) -> Tensor:
    """Sum over the samples of products (B, R, I*T), squared if need be."""
    total: Tensor | None = None
    for found in products:
        # The positions share the weight: a sample's gradient is their sum, squared only then.
        part = (found.square() if form == "squares" else found).sum(0)
        total = part if total is None else total.add_(part)
    assert total is not None  # a batch has samples
    return total.reshape(shape)
