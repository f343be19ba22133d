"""Layer steps on one device: every kernel over rows, columns, batch and density."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from grow.kernels import KERNELS
from grow.kernels.compiled import available
from grow.kernels.tiles import tiles_here
from grow.layers import SparseConv2d, SparseLinear
from hardware.profile import CONVOLUTION_TAPS, FIRST, MASKED, TILED, table_name
from hardware.profile.measurements import KernelTime
from hardware.sweep.clock import Patience, Timing, Yardstick, in_passes, own_work
from hardware.sweep.structures import drawn

if TYPE_CHECKING:
    from grow.layers import SparseLayer
    from hardware.sweep.grid import Grid

Step = Callable[[], object]
MASKED_DENSITY = 0.3
"""Any would do: a mask costs what it costs, however many zeros it has."""


LEAST_OWN = 0.01
"""Share of a layer's step that is its own at least: what all steps have in common may not leave nothing or less of a noisy one."""
CHANNEL_BLOCKS = (1, 4, 8, 16, 32)
MOST_VALUES = 2**27
"""Of weights and features that are kept at once: with gradients and moments, half a gigabyte a tensor of float32."""

Layers = dict[tuple[str, int, int, float], nn.Module]
"""Those that were made already, by table, rows, columns and density."""


@dataclass(frozen=True)
class Point:
    """A point of a table, and its step, made when its turn comes."""

    table: str
    rows: int
    columns: int
    batch: int
    density: float
    make: Callable[[Layers], Step]

    @property
    def values(self) -> int:
        """Of its weight, its input and its output, at most."""
        return self.rows * self.columns + self.batch * (self.rows + self.columns)


class Bench:
    """Layer steps, made of the project's own layers, on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, grid: Grid) -> None:
        self.device, self.dtype, self.grid = device, dtype, grid
        self.patience = Patience(15, grid.budget_s, fewest=2, warm_up=1)

    @property
    def names(self) -> list[str]:
        """Kernels that are measured: those of the grid that know the dtype; of the compiled one and csr, which it falls back to, one."""
        runs = self.device.type == "cpu" and available()
        spared = {"csr" if runs else "compiled"} if "compiled" in self.grid.kernels else set()
        return [name for name in self.grid.kernels if self.dtype in KERNELS[name].dtypes and name not in spared]

    @property
    def structured(self) -> list[str]:
        """Kernels that are measured on the structures that they are made for."""
        return [name for name in self.grid.structured if self.dtype in KERNELS[name].dtypes]

    def kernels(self) -> tuple[KernelTime, ...]:
        """The tables of all kernels, linear and convolutional."""
        points = self._table(convolution=False), self._structured(), self._table(convolution=True), self._dense_convolutions()
        return self.measured(list(chain(*points)))

    def measured(self, points: Sequence[Point]) -> tuple[KernelTime, ...]:
        """Points in passes over as many as fit into memory, in seconds of the speed that the machine had in the median.

        What a step costs without any layer is measured beside them and is none of theirs: a network's step has it once. A mask costs a
        step the same on every batch: it is measured on the smallest one.
        """
        yardstick, found = Yardstick(self.device), list[Timing]()
        for group in _groups(points):
            layers: Layers = {}
            found += self._own([point.make(layers) for point in group], yardstick)
        rows = (
            KernelTime(
                point.table, point.rows, point.columns, point.batch, point.density, timing.seconds * yardstick.usual_s, timing.spread
            )
            for point, timing in zip(points, found, strict=True)
        )
        return tuple(_with_masks(list(rows), self.grid.batches))

    def _own(self, steps: Sequence[Step], yardstick: Yardstick) -> list[Timing]:
        """Of layer steps what the layer adds to a step, in yardsticks."""
        empty, *found = in_passes([self._empty_step(), *steps], self.device, self.patience, yardstick)
        return [timing._replace(seconds=max(timing.seconds - empty.seconds, LEAST_OWN * timing.seconds)) for timing in found]

    def _empty_step(self) -> Step:
        """What every step has: autograd and an optimizer, here of a single number."""
        number = nn.Parameter(torch.zeros(1, device=self.device, dtype=self.dtype))
        optimizer = torch.optim.SGD([number], lr=0.0, momentum=0.9)
        upstream = torch.ones_like(number.detach())

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (2 * number).backward(upstream)  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()

        return step

    def _structured(self) -> Iterator[Point]:
        """Kernels that are made for some structures, each on one of its own; convolutions are those of the channels that are left."""
        grid, known = self.grid, self.structured
        batches = sorted({min(grid.batches), max(grid.batches)})
        sides, densities = grid.structured_sides, grid.structured_densities
        for name, rows, columns, density, batch in product(known, sides, sides, densities, batches):
            yield self._linear(name, name, rows, columns, batch, density)
        batches = sorted({min(grid.conv_batches), max(grid.conv_batches)})
        for rows, columns, batch, density in product(grid.conv_rows, grid.structured_conv_columns, batches, densities):
            yield self._convolution("columns", rows, columns, batch, density)

    def _table(self, *, convolution: bool) -> Iterator[Point]:
        grid = self.grid
        axes = (grid.conv_rows, grid.conv_columns) if convolution else (grid.rows, grid.columns)
        for rows, columns in product(*axes):
            for name, table, density in self._variants(convolution=convolution):
                for batch in grid.conv_batches if convolution else grid.batches:
                    if convolution:
                        yield self._convolution(name, rows, columns, batch, density)
                    elif self._differs(table, rows, columns, batch):
                        yield self._linear(name, table, rows, columns, batch, density)

    def _differs(self, table: str, rows: int, columns: int, batch: int) -> bool:
        """Whether a point is measured: a mask costs the same on every batch, and few of the points of a first layer tell the others."""
        grid = self.grid
        if table.endswith(MASKED):
            return batch == min(grid.batches)
        if table.endswith(FIRST):
            return rows in grid.rows[-2:] and columns in grid.columns[-2:] and batch in (min(grid.batches), max(grid.batches))
        return True

    def _dense_convolutions(self) -> Iterator[Point]:
        """Dense ones of 5 x 5 of many channels or on wide maps, and of 3 x 3 with the channels of all."""
        grid, (taps, most) = self.grid, CONVOLUTION_TAPS
        for rows, columns in product(grid.conv_rows, (*grid.conv_columns, grid.wide_columns)):
            for batch in (*grid.conv_batches, grid.wide_batch):
                if columns == grid.wide_columns or batch == grid.wide_batch:  # the others are in the table already
                    yield self._convolution("dense", rows, columns, batch, 1.0)
                yield self._convolution("dense", rows, columns // most * taps, batch, 1.0, taps)

    def _linear(self, name: str, table: str, rows: int, columns: int, batch: int, density: float) -> Point:
        def make(layers: Layers) -> Step:
            key = table.removesuffix(FIRST), rows, columns, density
            if key not in layers:
                layers[key] = self.linear_layer(name, rows, columns, density)
            return self.linear_step_of(layers[key], columns, batch, input_gradient=not table.endswith(FIRST))

        recorded = 1.0 if table.endswith(MASKED) else density
        return Point(table, rows, columns, batch, recorded, make)

    def _convolution(self, name: str, rows: int, columns: int, batch: int, density: float, taps: int = CONVOLUTION_TAPS[1]) -> Point:
        def make(layers: Layers) -> Step:
            return self.conv_step(name, rows, columns, batch, density, taps)

        return Point(table_name(name, convolution=True, taps=taps), rows, columns, batch, density, make)

    def unpadded(self) -> float:
        """Time of a dense convolution without padding over that of a padded one with as many outputs: libraries tile them differently."""
        found = []
        for taps in CONVOLUTION_TAPS:
            steps = [self.conv_step("dense", 32, 32 * taps, 32 * 144, 1.0, taps, side=12, padded=padded) for padded in (False, True)]
            without, with_it = (own_work(step, self.device, self.patience).seconds for step in steps)
            found.append(without / with_it)
        return float(np.sqrt(np.prod(found)))

    def channel_block(self) -> int:
        """Channels that a dense convolution computes at a time: of some numbers the one whose whole blocks tell the times best.

        Libraries compute as many channels at a time as fit into a vector (oneDNN 8 with AVX2, 16 with AVX-512).
        """
        channels = (16, 18, 24, 28, 32)
        steps = [self.conv_step("dense", 32, 25 * count, 2048, 1.0) for count in channels]
        times = np.log([own_work(step, self.device, self.patience).seconds for step in steps])

        def misfit(block: int) -> float:
            beyond = times - np.log([-(-count // block) * block for count in channels])
            return float(np.square(beyond - beyond.mean()).sum())

        return min(CHANNEL_BLOCKS, key=misfit)

    def _variants(self, *, convolution: bool) -> Iterator[tuple[str, str, float]]:
        """Kernel, name of the table, density. A convolution's mask is small against its maps, and its time a smooth one of the density.

        First layers have a table where a kernel computes both gradients at once: leaving one out does not save the time of a product.
        """
        for name in self.names:
            if KERNELS[name].storage == "dense":
                yield name, name, 1.0
                if not convolution:
                    yield name, name + MASKED, MASKED_DENSITY
                continue
            densities = self.grid.densities[:: 2 if convolution else 1]
            yield from ((name, table, density) for density in densities for table in ((name,) if convolution else (name, name + FIRST)))

    def without_input_gradient(self) -> dict[str, float]:
        """Per kernel, the time of a step without the gradient of the input over the time with it."""
        found = {}
        for name in (*self.names, *self.structured):
            for convolution in (False, True) if name in (*self.names, "columns") else (False,):  # the first convolution reads an image
                make, sizes = (self.conv_step, (32, 25, 4096)) if convolution else (self.linear_step, (512, 512, 256))
                steps = [make(name, *sizes, 0.1, input_gradient=needed) for needed in (True, False)]
                with_it, without = (timing.seconds for timing in self._own(steps, Yardstick(self.device)))
                found[table_name(name, convolution=convolution)] = min(1.0, without / with_it)
        return found

    @property
    def tile_bytes(self) -> tuple[int, ...]:
        """What a feature takes in a tile of the compiled kernel."""
        return tiles_here()

    def unfilled(self) -> tuple[float, float]:
        """Seconds by which a batch that fills three quarters of its tile makes a compiled step longer: of any, and of a value in the tiles.

        By the smallest and the largest layer of the grid with few connections.
        """
        grid = self.grid
        if TILED not in self.names:
            return 0.0, 0.0
        whole = self.tile_bytes[0] // self.dtype.itemsize
        sides = [(min(grid.rows), min(grid.columns)), (max(grid.rows), max(grid.columns))]
        layers = [self.linear_layer(TILED, *side, min(grid.densities)) for side in sides]
        yardstick, batches = Yardstick(self.device), (whole * 3 // 4, whole)
        steps = [self.linear_step_of(layer, side[1], batch) for layer, side in zip(layers, sides, strict=True) for batch in batches]
        times = [timing.seconds * yardstick.usual_s for timing in in_passes(steps, self.device, self.patience, yardstick)]
        small, large = times[0] - times[1], times[2] - times[3]
        fewer, more = (batches[0] * sum(side) for side in sides)
        of_value = max(0.0, large - small) / (more - fewer)
        return max(0.0, small - of_value * fewer), of_value

    def overhead(self) -> float:
        """A step without any layer: loss, autograd and an optimizer of one small parameter."""
        logits = torch.zeros(256, 10, device=self.device, dtype=self.dtype, requires_grad=True)
        targets = torch.zeros(256, dtype=torch.int64, device=self.device)
        optimizer = torch.optim.SGD([logits], lr=0.0, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()

        return own_work(step, self.device, Patience(40)).seconds

    def linear_step(self, kernel: str, rows: int, columns: int, batch: int, density: float, *, input_gradient: bool = True) -> Step:
        """One linear layer with its activation, through autograd and SGD with momentum; at density 1 without a mask."""
        return self.linear_step_of(self.linear_layer(kernel, rows, columns, density), columns, batch, input_gradient=input_gradient)

    def linear_layer(self, kernel: str, rows: int, columns: int, density: float) -> SparseLinear:
        """The layer of such a step, which may serve several batches."""
        layer = SparseLinear(*self._parameters(rows, columns))
        _thin_out(layer, kernel, density)
        return layer.to(self.device)

    def linear_step_of(self, layer: nn.Module, columns: int, batch: int, *, input_gradient: bool = True) -> Step:
        """A step of a layer that reads what a layer of the same kernel leaves, feature-major or not; or data, without an input gradient."""
        x = torch.randn(batch, columns, device=self.device, dtype=self.dtype)
        if input_gradient and not layer(x[:2]).is_contiguous():
            x = x.t().contiguous().t()
        return _step(layer, x.requires_grad_(input_gradient))

    def conv_step(
        self,
        kernel: str,
        rows: int,
        columns: int,
        batch: int,
        density: float,
        taps: int = CONVOLUTION_TAPS[1],
        *,
        side: int = 8,
        padded: bool = True,
        input_gradient: bool = True,
    ) -> Step:
        """One convolution of 5 x 5 (or other) ``taps`` with its activation: ``columns`` / taps channels in, ``side`` x ``side`` maps out.

        ``batch`` counts the positions of all samples.
        """
        width, channels = isqrt(taps), columns // taps
        border = width // 2 if padded else 0
        layer = SparseConv2d(*self._parameters(rows, channels, width, width), (1, 1), (border, border), (1, 1))
        _thin_out(layer, kernel, density)
        read = side + width - 1 - 2 * border
        x = torch.randn(batch // side**2, channels, read, read, device=self.device, dtype=self.dtype, requires_grad=input_gradient)
        return _step(layer.to(self.device), x)

    def _parameters(self, *shape: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Weight and bias to be trained: a layer takes over whether they are."""
        weight, bias = torch.randn(shape, dtype=self.dtype) * 0.01, torch.zeros(shape[0], dtype=self.dtype)
        return nn.Parameter(weight), nn.Parameter(bias)


def _groups(points: Sequence[Point]) -> Iterator[list[Point]]:
    """All points, in their order, as many together as memory is meant for."""
    group, held = list[Point](), 0
    for point in points:
        if group and held + point.values > MOST_VALUES:
            yield group
            group, held = [], 0
        group.append(point)
        held += point.values
    if group:
        yield group


def _with_masks(rows: Sequence[KernelTime], batches: Sequence[int]) -> Iterator[KernelTime]:
    """The rows, and those of masked steps on other batches than the one that they were measured on."""
    plain = {(row.kernel, row.rows, row.columns, row.batch): row for row in rows}
    for row in rows:
        yield row
        if not row.kernel.endswith(MASKED):
            continue
        without = [plain[row.kernel.removesuffix(MASKED), row.rows, row.columns, batch] for batch in batches]
        mask_s = max(0.0, row.seconds - min(without, key=lambda other: other.batch).seconds)
        yield from (replace(row, batch=other.batch, seconds=other.seconds + mask_s) for other in without if other.batch != row.batch)


def _step(layer: nn.Module, x: torch.Tensor) -> Step:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    upstream = torch.ones_like(layer(x).detach())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        x.grad = None
        torch.relu(layer(x)).backward(upstream)  # type: ignore[no-untyped-call,unused-ignore]
        optimizer.step()

    return step


def _thin_out(layer: SparseLayer, kernel: str, density: float) -> None:
    """Leave a layer so many connections, as the kernel likes them, in the storage of the kernel that is to compute it."""
    if density == 1.0 and KERNELS[kernel].storage == "dense":
        return
    index = drawn(kernel, len(layer.weight), layer.weight[0].numel(), density, layer.weight[0, 0].numel())
    weights = layer.weight.detach().reshape(-1)
    kept = torch.from_numpy(index)
    if KERNELS[kernel].storage == "compressed":
        values = weights[kept]
    else:
        values = torch.zeros_like(weights).index_copy(0, kept, weights[kept]).view_as(layer.weight)
    layer.restructure(layer.weight_shape, index, kernel, nn.Parameter(values))
