"""Dense on the columns that are read at all: for layers that stopped reading whole source units.

Where every row reads the same columns, the values of the connections are that smaller weight, without a copy. Other structures are
computed as well, but their values are spread out first. A convolution is the smaller dense one of the channels that have
connections on either side.

Legend: B batch, O / I target / source entries, K columns that any row reads, E connections.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from grow.kernels.base import Convolve, Geometry, Kernel, Product


def prepare(positions: Tensor | None, shape: tuple[int, int]) -> Product:
    """Product with the values (E,) of the connections at sorted flat positions."""
    if positions is None:
        raise ValueError("kernel 'columns' needs the layer's connections; store the layer compressed")
    columns, place = torch.unique(positions % shape[1], return_inverse=True)  # (K,), (E,)
    read, possible = len(columns), shape[0] * len(columns)
    slots = None if len(positions) == possible else positions // shape[1] * read + place

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        if slots is not None:
            values = values.new_zeros(possible).index_put((slots,), values)
        taken = x if read == shape[1] else x.index_select(1, columns)  # (B, K)
        return functional.linear(taken, values.reshape(shape[0], read), bias)

    return product


def prepare_convolution(positions: Tensor, geometry: Geometry) -> Convolve:
    """Convolution of the channels that are read and written at all, with the values (E,) of the connections at sorted flat positions."""
    outputs, inputs, *taps = geometry.shape
    channel, tap = positions // prod(taps), positions % prod(taps)
    written, row = torch.unique(channel // inputs, return_inverse=True)  # (O',), (E,)
    read, column = torch.unique(channel % inputs, return_inverse=True)  # (I',), (E,)
    shape = (len(written), len(read), *taps)
    slots = None if len(positions) == prod(shape) else (row * len(read) + column) * prod(taps) + tap

    def convolve(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor | None:
        if not len(positions):
            return None
        if slots is not None:
            values = values.new_zeros(prod(shape)).index_put((slots,), values)
        taken = x if len(read) == inputs else x.index_select(1, read)
        own = None if bias is None else bias if len(written) == outputs else bias[written]
        y = functional.conv2d(taken, values.reshape(shape), own, geometry.stride, geometry.padding, geometry.dilation)
        if len(written) == outputs:
            return y
        rest = y.new_zeros(()) if bias is None else bias[:, None, None]
        return rest.expand(y.shape[0], outputs, *y.shape[2:]).index_copy(1, written, y)

    return convolve


def same_columns(positions: Tensor | None, shape: tuple[int, int]) -> bool:
    """Whether all rows read the same columns, at least one, and not all that there are."""
    if positions is None or len(positions) == 0 or len(positions) % shape[0] or len(positions) == shape[0] * shape[1]:
        return False
    rows = positions.reshape(shape[0], -1)  # (O, K) if it is so
    if int(rows[0, -1]) >= shape[1]:
        return False
    return bool((rows - torch.arange(shape[0], device=rows.device)[:, None] * shape[1] == rows[0]).all())


COLUMNS = Kernel(
    "columns",
    "compressed",
    frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}),
    prepare,
    made_for=same_columns,
    convolution=prepare_convolution,
)
