"""The connections of a matrix row by row, as their flat positions come, and column by column.

On the CPU by a counting sort, linear in the connections. All numbers have 32 bits: structures are as large as what they describe.

Legend: O / I rows and columns of the matrix, E connections.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor


def by_rows(positions: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where each row starts (O + 1,) among sorted flat positions (E,), and the column of each.

    >>> [found.tolist() for found in by_rows(torch.tensor([0, 2, 5]), (2, 3))]
    [[0, 2, 3], [0, 2, 2]]
    """
    if positions.device.type == "cpu":  # numpy's calls take a third of the time of torch's, and a structure is made at every edit
        flat, firsts_of = positions.numpy(), np.arange(shape[0] + 1) * shape[1]
        ends = flat.searchsorted(firsts_of)
        columns = flat - np.repeat(firsts_of[:-1], np.diff(ends))
        return torch.from_numpy(ends.astype(np.int32)), torch.from_numpy(columns.astype(np.int32))
    firsts = torch.arange(shape[0] + 1, device=positions.device) * shape[1]
    starts = torch.searchsorted(positions, firsts)
    return starts.int(), positions.sub(firsts[:-1].repeat_interleave(starts.diff())).int()


def by_columns(starts: Tensor, columns: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of what `by_rows` gives: where each of ``width`` columns starts, and in the columns' order each connection's row and its number.

    Connections of one column stay in the order of their rows, and those of one row and column in theirs.

    >>> [found.tolist() for found in by_columns(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2]), 3)]
    [[0, 1, 1, 3], [0, 0, 1], [0, 1, 2]]
    """
    height, count = len(starts) - 1, len(columns)
    if columns.device.type != "cpu":
        order = torch.argsort(columns, stable=True)
        rows = torch.arange(height, device=columns.device).repeat_interleave(starts.diff(), output_size=count)[order]
        ends = torch.bincount(columns, minlength=width).cumsum(0)
        return torch.cat([ends.new_zeros(1), ends]).int(), rows.int(), order.int()
    numbered = csr_array((np.arange(count, dtype=np.int32), columns.int().numpy(), starts.int().numpy()), shape=(height, width))
    turned = numbered.tocsc()
    found = (turned.indptr, turned.indices, turned.data)
    column_starts, rows, order = (torch.from_numpy(part.astype(np.int32, copy=False)) for part in found)
    return column_starts, rows, order
