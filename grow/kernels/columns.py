"""Dense on the columns that are read at all: for layers that stopped reading whole source units.

Where every row reads the same columns, the values of the connections are that smaller weight, without a copy. Other structures are
computed as well, but their values are spread out first.

Legend: B batch, O / I target / source entries, K columns that any row reads, E connections.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from grow.kernels.base import Kernel, Product


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


COLUMNS = Kernel("columns", "compressed", frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}), prepare)
