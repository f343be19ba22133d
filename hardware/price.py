"""What a halo unit is worth in connections, by the time that both take on a machine.

The price of the engine is stated in median saliencies per halo unit, which means the same on every network and says nothing of the
machine. Here is what the machine says: sending one unit more takes as long as computing so many connections more. At this price a
unit is sent if it is worth as many median connections as could be had for its time. A slow link raises it in proportion.

Legend: k parts, B batch.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from statistics import median

import numpy as np

from hardware.partition import Partition
from hardware.profile import Profile
from hardware.workload import LayerWork, Workload

HALO_SHARE = 0.05
"""Halo at which one unit more is priced, as a share of a part's own units."""

MORE = 1.25
"""Factor of the difference quotients."""

DENSEST = 0.5
"""Density beyond which connections are priced as at it: sparse products are not measured there."""


def price_by_time(work: Workload, partition: Partition, profile: Profile, batch: int) -> float:
    """Connections whose forward and backward pass takes as long as the exchange of one halo unit: median over the layers that exchange.

    Connections are computed by the fastest sparse kernel: the time of a dense product does not depend on how many there are. Infinite
    where one connection more takes no time, since latency is all. ValueError where no hidden space reads another: nothing can cross.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}, but must be at least 1; name the samples of one step")
    found = []
    for layer in work.layers:
        for reads in layer.reads:
            if partition.count > 1 and layer.target in partition.parts and reads.space in partition.parts and layer.connections:
                own = work.units[reads.space] / partition.count
                halo_s = halo_unit_seconds(profile, partition.count, own, batch * reads.values)
                connection_s = connection_seconds(profile, layer, partition.count, batch)
                found.append(halo_s / connection_s if connection_s else inf)
    if not found:
        raise ValueError("partition lets nothing cross, but must have at least 2 parts and a hidden space that reads another")
    return median(found)


def machine_price(work: Workload, density: float, parts: int, profile: Profile, batch: int) -> float:
    """The price by time of a network with a share ``density`` of the connections of ``work``, its units divided into so many parts.

    Finite: where connections take no time, a unit costs as much as all of them. Zero where nothing can cross.
    """
    layers = tuple(replace(layer, connections=max(1, round(density * layer.connections))) for layer in work.layers)
    sparse = replace(work, layers=layers)
    divided = Partition({space: np.arange(work.units[space]) % parts for space in work.hidden}, parts)
    if parts == 1 or not any(layer.target in divided.parts and reads.space in divided.parts for layer in layers for reads in layer.reads):
        return 0.0
    return min(price_by_time(sparse, divided, profile, batch), float(sum(layer.connections for layer in layers)))


def halo_unit_seconds(profile: Profile, parts: int, own: float, values: float) -> float:
    """Time that one more halo unit takes in a step, there and back; ``own`` units are held by a part, each of so many values.

    Its values lie together, as sparse kernels leave them.
    """
    size = values * profile.element_size
    less, more = (profile.halo_seconds(parts, own * size, factor * HALO_SHARE * own * size, by_unit=True) for factor in (1.0, MORE))
    return (more - less) / ((MORE - 1) * HALO_SHARE * own)


def connection_seconds(profile: Profile, layer: LayerWork, parts: int, batch: int) -> float:
    """Time that one more connection of a layer takes in a step on one of the parts, with the sparse kernel that is the fastest there."""
    rows, columns = round(layer.rows / parts), layer.columns * layer.taps
    density = min(layer.connections / (layer.rows * columns), DENSEST)
    local = layer.case(rows, layer.columns, layer.connections // parts, batch, profile.devices[0].kind, parts)
    case = replace(local, density=density, unfit=local.unfit | {"dense"})
    less_s, kernel = profile.fastest(case)
    more_s = profile.timings(kernel, replace(case, density=MORE * density))
    assert more_s is not None
    return max(more_s - less_s, 0.0) / ((MORE - 1) * density * rows * columns)
