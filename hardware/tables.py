"""Measured times between the points at which they were measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import prod
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]


class Row(Protocol):
    """A measured layer step."""

    @property
    def kernel(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def columns(self) -> int: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def density(self) -> float: ...  # noqa: D102
    @property
    def seconds(self) -> float: ...  # noqa: D102


class KernelTable:
    """Seconds over rows, columns and batch, and over the density where it varies: multilinear between the measured points.

    A step costs something to begin with, something a row, a column, a sample and a connection, which are lines in every quantity;
    powers between points as far apart as these would lie above them. Continued by the nearest slopes, but below the smallest
    point never at less than in proportion.

    Rows and columns are compared at as many connections, not at the density: what a connection costs depends on the cache that all of them
    fit into, and a layer of 1,000 units has a quarter of those that one of 2,000 has at the same density. What is more than a measured
    shape has room for costs what a connection more costs the next larger one: of a shape that has few, that is mostly noise.

    cost_of: of a batch, where a step does not take longer with every single sample, as with kernels that compute whole tiles of them.
    """

    def __init__(self, rows: Sequence[Row], cost_of: Callable[[float], float] = float) -> None:
        self.cost_of = cost_of
        points = np.array([(row.rows, row.columns, cost_of(row.batch), row.density) for row in rows])
        axes = [np.unique(points[:, axis]) for axis in range(4)]
        values = np.full([len(axis) for axis in axes], np.nan)
        for row, point in zip(rows, points, strict=True):
            values[tuple(int(np.searchsorted(axis, x)) for axis, x in zip(axes, point, strict=True))] = row.seconds
        if np.isnan(values).any():
            raise ValueError(
                f"kernel {rows[0].kernel!r} of the profile has gaps, but must be measured at every point of its grid; run `grow profile`"
            )
        self._axes: list[list[float]] = [axis.tolist() for axis in axes]  # numpy takes longer than all else for single numbers
        self._seconds: list[list[list[list[float]]]] = values.tolist()

    def seconds(self, rows: float, columns: float, batch: float, density: float) -> float:
        """Time at a point; all quantities positive."""
        varied = density if len(self._axes[3]) > 1 else self._axes[3][0]
        point = (rows, columns, self.cost_of(batch), varied)
        within = tuple(min(max(x, axis[0]), axis[-1]) for x, axis in zip(point, self._axes, strict=True))
        proportion = prod(min(x / near, 1.0) for x, near in zip(point, within, strict=True))
        measured = self._between(*within)
        return max(measured if point == within else self._between(*point), measured * proportion)

    def _between(self, rows: float, columns: float, cost: float, density: float) -> float:
        """Of the four nearest shapes, each with as many connections as are asked for; beyond them with as large a share of its own."""
        row_axis, column_axis, cost_axis, _ = self._axes
        rows_in, columns_in = (axis[0] <= x <= axis[-1] for axis, x in ((row_axis, rows), (column_axis, columns)))
        costs, found = _neighbours(cost_axis, cost), 0.0
        for i, of_row in _neighbours(row_axis, rows):
            for j, of_column in _neighbours(column_axis, columns):
                as_dense = density * (rows / row_axis[i] if rows_in else 1) * (columns / column_axis[j] if columns_in else 1)
                seconds = self._along(i, j, costs, min(as_dense, 1.0))
                if as_dense > 1 and len(self._axes[3]) > 1:
                    seconds += self._of_one_more(i, j, costs) * (as_dense - 1) * row_axis[i] * column_axis[j]
                found += of_row * of_column * seconds
        return found

    def _of_one_more(self, i: int, j: int, costs: Sequence[tuple[int, float]]) -> float:
        """What a connection costs that a shape has no room for: one more of the next larger shape, where that has most."""
        i, j = (min(place + 1, len(axis) - 1) for place, axis in ((i, self._axes[0]), (j, self._axes[1])))
        fewer, more = (sum(of * self._seconds[i][j][n][d] for n, of in costs) for d in (-2, -1))
        connections = (self._axes[3][-1] - self._axes[3][-2]) * self._axes[0][i] * self._axes[1][j]
        return max(0.0, more - fewer) / connections

    def _along(self, i: int, j: int, costs: Sequence[tuple[int, float]], density: float) -> float:
        """Of one shape; below the smallest density never at less than in proportion."""
        axis = self._axes[3]
        measured = [sum(of * self._seconds[i][j][n][d] for n, of in costs) for d in range(len(axis))]
        line = sum(of * measured[d] for d, of in _neighbours(axis, density))
        return max(line, measured[0] * density / axis[0]) if density < axis[0] else line


def _neighbours(axis: Sequence[float], x: float) -> list[tuple[int, float]]:
    """The points of an axis between which x lies, or to which it is nearest, and the share that each has in a line through both."""
    if len(axis) == 1:
        return [(0, 1.0)]
    first = min(max(bisect_left(axis, x) - 1, 0), len(axis) - 2)
    share = (x - axis[first]) / (axis[first + 1] - axis[first])
    return [(place, of) for place, of in ((first, 1 - share), (first + 1, share)) if of]


class SizeTable:
    """A quantity over a size in bytes."""

    def __init__(self, rows: Sequence[tuple[float, float]]) -> None:
        self.sizes, self.values = np.array(sorted(rows), dtype=float).T

    def within(self, size_bytes: float) -> float:
        """The quantity at a size; beyond the measured ones, that of the nearest."""
        return float(np.exp(np.interp(np.log(max(size_bytes, 1)), np.log(self.sizes), np.log(self.values))))

    def seconds(self, size_bytes: float) -> float:
        """A time at a size; beyond the largest, the bandwidth found there.

        >>> SizeTable([(8, 1e-4), (800, 1e-2)]).seconds(1600)
        0.02
        """
        beyond = float(self.values[-1] * size_bytes / self.sizes[-1])
        return beyond if size_bytes > self.sizes[-1] else self.within(size_bytes)


def rates(quantities: Sequence[tuple[float, ...]], seconds: Sequence[float], scales: Sequence[float]) -> FloatArray:
    """Non-negative seconds per quantity whose sums come nearest to the measured seconds, each row counting relative to its scale.

    >>> rates([(1.0, 0.0), (1.0, 10.0), (1.0, 100.0)], [2.0, 7.0, 52.0], [2.0, 7.0, 52.0]).round(6).tolist()
    [2.0, 0.5]
    """
    from scipy.optimize import nnls

    weights = 1 / np.array(scales, float)
    matrix = np.array(quantities, float)
    units = np.abs(matrix).max(0)
    units[units == 0] = 1.0
    found, _ = nnls(matrix / units * weights[:, None], np.array(seconds, float) * weights)
    result: FloatArray = found / units
    return result
