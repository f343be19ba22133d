"""Measured times between the points at which they were measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol, TypeAlias

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

    cost_of: of a batch, where a step does not take longer with every single sample, as with kernels that compute whole tiles of them.
    """

    def __init__(self, rows: Sequence[Row], cost_of: Callable[[float], float] = float) -> None:
        self.cost_of = cost_of
        points = np.array([(row.rows, row.columns, cost_of(row.batch), row.density) for row in rows])
        axes = [np.unique(points[:, axis]) for axis in range(4)]
        self.axes = axes if len(axes[3]) > 1 else axes[:3]
        values = np.full([len(axis) for axis in self.axes], np.nan)
        for row, point in zip(rows, points, strict=True):
            values[tuple(int(np.searchsorted(axis, x)) for axis, x in zip(self.axes, point, strict=False))] = row.seconds
        if np.isnan(values).any():
            raise ValueError(
                f"kernel {rows[0].kernel!r} of the profile has gaps, but must be measured at every point of its grid; run `grow profile`"
            )
        self._points: list[list[float]] = [axis.tolist() for axis in self.axes]
        self._values = values.tolist()  # a few numbers of each table are asked for at a time: no arrays

    def seconds(self, rows: float, columns: float, batch: float, density: float) -> float:
        """Time at a point; all quantities positive."""
        point = (rows, columns, self.cost_of(batch), density)[: len(self._points)]
        within = [min(max(x, axis[0]), axis[-1]) for x, axis in zip(point, self._points, strict=True)]
        measured = self._between(within)
        continued = measured if within == list(point) else self._between(point)
        return max(continued, measured * prod(min(x / inside, 1.0) for x, inside in zip(point, within, strict=True)))

    def _between(self, point: Sequence[float]) -> float:
        """Multilinear between the corners of the cell that a point lies in, or is nearest to."""
        cells = []
        for x, axis in zip(point, self._points, strict=True):
            first = min(max(bisect_right(axis, x) - 1, 0), max(len(axis) - 2, 0))
            cells.append((first, (x - axis[first]) / (axis[first + 1] - axis[first]) if len(axis) > 1 else 0.0))
        return _between(self._values, cells)


def _between(values: Any, cells: Sequence[tuple[int, float]]) -> float:
    """Of nested lists of values: between the two places of each axis, the share of the way from the first to the second."""
    if not cells:
        return float(values)
    (first, share), *others = cells
    low = _between(values[first], others)
    return low if share == 0 else (1 - share) * low + share * _between(values[first + 1], others)


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
