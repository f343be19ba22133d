"""Seconds and bytes of one training step under a strategy, from a profile.

Compute is the sum over the layers of the faster kernel's measured layer step, on the device that has most of it. Communication
is added to it: on one-core workers nothing overlaps.

Legend: B batch, k devices; rows and columns of the local weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

import numpy as np

from hardware import layout
from hardware.layout import Strategy, name_of
from hardware.partition import Partition, exchanges, halo, remote_readers
from hardware.profile import Profile, table_name
from hardware.workload import LayerWork, Workload

KERNELS = ("dense", "csr")
WEIGHT_COPIES = 3
"""Weight, gradient and momentum."""


@dataclass(frozen=True)
class StepTime:
    """One training step of a batch. Bytes are what all devices hand in together; memory is of the fullest device."""

    word: Literal["predicted", "simulated"]
    batch: int
    compute_s: float
    communication_s: float
    halo_bytes_per_step: int
    sum_bytes_per_step: int
    memory_bytes: int

    @property
    def total_s(self) -> float:
        """Seconds of the step."""
        return self.compute_s + self.communication_s

    @property
    def samples_per_s(self) -> float:
        """Training throughput."""
        return self.batch / self.total_s

    @property
    def bytes_per_step(self) -> int:
        """Bytes of halo exchanges and of sums."""
        return self.halo_bytes_per_step + self.sum_bytes_per_step


class LocalLayer(NamedTuple):
    """What one device holds of a layer."""

    work: LayerWork
    rows: int
    columns: int
    connections: int


def predict(
    work: Workload,
    strategy: str | Strategy,
    partition: Partition | None,
    profile: Profile,
    batch: int,
    devices: int = 1,
    *,
    kernels: Sequence[str] = KERNELS,
) -> StepTime:
    """Predict one training step. ``units`` takes its number of devices from the partition."""
    name = name_of(work, layout.strategy(work, strategy) if isinstance(strategy, str) else strategy)
    if batch < 1:
        raise ValueError(f"batch is {batch}, but must be at least 1; name the samples of one step")
    if name == "model" and partition is None:
        raise ValueError("partition is None, but must be given under 'units'; divide the network with one of hardware.partitioners")
    if devices < 1:
        raise ValueError(f"devices is {devices}, but must be at least 1; name those that share the batch")
    if name not in ("single", "data", "model"):
        raise ValueError(f"strategy is {name!r}, but must be single, data or model; price one of them")
    if name == "data" and devices > 1:
        return _data(work, profile, batch, devices, kernels)
    if name == "model" and partition is not None and partition.count > 1:
        return _units(work, partition, profile, batch, kernels)
    compute_s, memory = _compute(work, local_layers(work), profile, batch, kernels)
    return StepTime(profile.word, batch, compute_s, 0.0, 0, 0, memory)


def local_layers(work: Workload, partition: Partition | None = None, part: int = 0) -> Iterator[LocalLayer]:
    """What one part holds of every layer: its own rows, the columns of own, halo and whole units, and the connections among them."""
    for layer in work.layers:
        if partition is None:
            yield LocalLayer(layer, layer.rows, layer.columns, layer.connections)
            continue
        divided_target = layer.target in partition.parts
        rows = len(partition.units(layer.target, part)) if divided_target else layer.rows
        remote = halo(work, partition, layer.layer, part) if divided_target else {}
        columns, outgoing = 0, 0
        for reads in layer.reads:
            own = partition.units(reads.space, part) if reads.space in partition.parts else np.arange(work.units[reads.space])
            columns += reads.entries * (len(own) + len(remote.get(reads.space, ())))
            outgoing += int(reads.outgoing[own].sum())
        connections = int(layer.incoming[partition.units(layer.target, part)].sum()) if divided_target else outgoing
        yield LocalLayer(layer, rows, columns, connections)


def layer_seconds(
    local: LocalLayer, profile: Profile, batch: int, input_gradient: bool, kernels: Sequence[str] = KERNELS
) -> tuple[float, str]:
    """Time of a layer step with the fastest kernel, and which one that is. A layer that has all its connections is dense."""
    columns = local.columns * local.work.taps
    if min(local.rows, columns, local.connections) == 0:
        return 0.0, "dense"
    density = local.connections / (local.rows * columns)
    times = []
    for kernel in kernels if density < 1 else ("dense",):
        measured = table_name(kernel, convolution=local.work.convolution)
        seconds = profile.seconds(measured, local.rows, columns, density, batch * local.work.target_values)
        times.append((seconds * (1.0 if input_gradient else profile.without_input_gradient.get(measured, 1.0)), kernel))
    return min(times, key=lambda pair: pair[0])


def _compute(work: Workload, locals_: Iterator[LocalLayer], profile: Profile, batch: int, kernels: Sequence[str]) -> tuple[float, int]:
    """Seconds and bytes of one device."""
    seconds, values = profile.step_overhead_s, 0
    for local in locals_:
        needed = any(reads.space not in work.inputs for reads in local.work.reads)
        time_s, kernel = layer_seconds(local, profile, batch, needed, kernels)
        seconds += time_s
        held = local.connections if kernel != "dense" else local.rows * local.columns * local.work.taps
        values += WEIGHT_COPIES * (held + local.rows) + 2 * batch * local.rows * local.work.target_values
    return seconds, values * profile.element_size


def _data(work: Workload, profile: Profile, batch: int, devices: int, kernels: Sequence[str]) -> StepTime:
    share = ceil(batch / devices)
    compute_s, memory = _compute(work, local_layers(work), profile, share, kernels)
    values = 0
    for local in local_layers(work):
        _, kernel = layer_seconds(local, profile, share, True, kernels)
        values += (local.connections if kernel != "dense" else local.rows * local.columns * local.work.taps) + local.rows
    size = values * profile.element_size
    return StepTime(profile.word, batch, compute_s, profile.collective_seconds("sum", devices, size), 0, devices * size, memory)


def _units(work: Workload, partition: Partition, profile: Profile, batch: int, kernels: Sequence[str]) -> StepTime:
    devices = [_compute(work, local_layers(work, partition, part), profile, batch, kernels) for part in range(partition.count)]
    communication_s, halo_bytes, sum_bytes = 0.0, 0, 0
    for space in work.hidden:
        for values in exchanges(work, space):
            sent = remote_readers(work, partition, space, values).sum(1)  # (U,) copies of each unit
            if sent.any():
                handed = np.bincount(partition.parts[space], sent, minlength=partition.count) * values * batch * profile.element_size
                communication_s += 2 * profile.collective_seconds("exchange", partition.count, float(handed.max()))
                halo_bytes += 2 * int(handed.sum())
    for layer in work.layers:
        if layer.target not in partition.parts:
            size = batch * layer.rows * layer.target_values * profile.element_size
            communication_s += profile.collective_seconds("sum", partition.count, size)
            sum_bytes += partition.count * size
    compute_s, memory = max(seconds for seconds, _ in devices), max(size for _, size in devices)
    return StepTime(profile.word, batch, compute_s, communication_s, halo_bytes, sum_bytes, memory)
