"""How every space is held on the devices, and the strategies that have a name.

All values of a space have its layout, from the layer that computes them to the one that reads them; what changes on the way to
a reader of another layout is in `hardware.transitions`. A layer is computed in the layout of the space that it computes:

| computes | rows of its weight | samples | gradient of its weight |
|---|---|---|---|
| whole | all, on every device (only its own units' columns where it reads ``units``) | all | the same everywhere, or its owner's |
| batch | all, on every device | the device's own | partial: summed over the devices |
| units | the device's own | all | its owner's |

Legend: B batch, k devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from hardware.partition import Partition
from hardware.workload import IntArray, LayerWork, Workload

Layout: TypeAlias = Literal["whole", "batch", "units"]
"""All units of all samples on every device; a share of the samples; a share of the units."""

Strategy: TypeAlias = Mapping[str, Layout]
"""A layout for every space."""

STRATEGIES = ("single", "data", "model", "owt")
"""One device; every space ``batch`` (data parallelism); every hidden space ``units`` (model parallelism); One Weird Trick:
convolutions ``batch``, fully connected ``units`` (Krizhevsky 2014, arXiv 1404.5997)."""

OLD_NAMES = {"units": "model"}
"""What recipes and stored runs may call a strategy as well."""

UNNAMED = "mixed"
"""What `name_of` says of a strategy without a name."""


def samples_of(batch: int, devices: int) -> IntArray:
    """Samples of every device where a space is ``batch``, (k,). Device r has those from B r // k up to B (r + 1) // k.

    >>> samples_of(11, 4).tolist(), samples_of(2, 3).tolist()
    ([2, 3, 3, 3], [0, 1, 1])
    """
    return np.diff(batch * np.arange(devices + 1) // devices)


def strategy(work: Workload, name: str) -> dict[str, Layout]:
    """The strategy of that name.

    Spaces that cannot be divided by units (`Workload.indivisible`), and those that are joined with them, are ``whole`` where the name asks
    for units. The output is whole where its layers read units, since their partial sums are totalled on all devices, and otherwise
    like what they read.
    """
    name = OLD_NAMES.get(name, name)
    if name not in STRATEGIES:
        raise ValueError(f"strategy is {name!r}, but must be one of {', '.join(STRATEGIES)}")
    if name in ("single", "data"):
        return dict.fromkeys(work.units, "batch" if name == "data" else "whole")
    found: dict[str, Layout] = {}
    for space in work.hidden:
        convolution = any(layer.convolution for layer in work.layers if layer.computes == space)
        by_units: Layout = "whole" if space in work.indivisible else "units"
        found[space] = "batch" if name == "owt" and convolution else by_units
    while True:
        layouts = completed(work, found)
        apart = [space for layer in work.layers if not joins(work, layer, layouts) for space in _spaces(layer) if space in found]
        if not apart:
            return layouts
        found |= dict.fromkeys(apart, "whole")


def _spaces(layer: LayerWork) -> list[str]:
    """What a layer reads and, where this is several spaces, computes."""
    return [*(reads.space for reads in layer.reads), *((layer.computes, *layer.also) if layer.also else ())]


def completed(work: Workload, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
    """A strategy of the hidden spaces with the layouts of inputs, and of outputs where they are not given, that suit them best."""
    found = {space: layout for space, layout in layouts.items() if space not in work.inputs}
    for space in work.units:
        if space not in found and space not in work.inputs:
            read = {found[r.space] for layer in work.layers if layer.computes == space for r in layer.reads if r.space in found}
            found[space] = "batch" if read == {"batch"} else "whole"
    for space in work.inputs:
        readers = [layer for layer in work.layers if any(reads.space == space for reads in layer.reads)]
        concerned = {found.get(name) for layer in readers for name in (layer.computes, *(r.space for r in layer.reads))}
        found[space] = "batch" if concerned - {None} == {"batch"} else "whole"
    return {space: found[space] for space in work.units}


def allowed(work: Workload, space: str) -> tuple[Layout, ...]:
    """The layouts that a space may have."""
    return ("whole", "batch", "units") if space in work.hidden and space not in work.indivisible else ("whole", "batch")


def check(work: Workload, layouts: Strategy) -> None:
    """ValueError where a strategy is none of this network, or asks for what cannot be executed."""
    missing = sorted(set(work.units) ^ set(layouts))
    if missing:
        raise ValueError(f"strategy names the spaces {sorted(layouts)}, but must name exactly those of the network; check {missing[0]!r}")
    for space, layout in layouts.items():
        if layout not in allowed(work, space):
            reason = work.indivisible.get(space, "inputs and outputs are not divided by units")
            raise ValueError(f"layout of space {space!r} is {layout!r}, but must be {' or '.join(allowed(work, space))}: {reason}")
    for layer in work.layers:
        _check_reads(work, layer, layouts)


def joins(work: Workload, layer: LayerWork, layouts: Strategy) -> bool:
    """Whether a layer can read its spaces in these layouts.

    What it reads joined along the units has one layout, but that a whole input may stand beside ``units`` for a layer that computes
    ``units``; so has what it computes. The samples of an input that is ``batch`` are cut before anything is computed, so its readers
    are ``batch``.
    """
    found = {layouts[reads.space] for reads in layer.reads}
    target = layouts[layer.computes]
    if any(layouts[space] != target for space in layer.also):
        return False
    if "batch" in {layouts[reads.space] for reads in layer.reads if reads.space in work.inputs} and target != "batch":
        return False
    hidden = {layouts[reads.space] for reads in layer.reads if reads.space not in work.inputs}
    return len(found) < 2 or (target == "units" and found == {"whole", "units"} and hidden == {"units"})


def _check_reads(work: Workload, layer: LayerWork, layouts: Strategy) -> None:
    if not joins(work, layer, layouts):
        found = ", ".join(f"{reads.space!r} {layouts[reads.space]}" for reads in layer.reads)
        rule = "what it reads in one layout (a batch input only for batch, a whole one beside units only for units)"
        raise ValueError(f"layer {layer.layer!r} reads {found} for {layouts[layer.computes]}, but must have {rule}; change one of them")


def name_of(work: Workload, layouts: Strategy) -> str:
    """The first name of a strategy, ``mixed`` where it has none; ValueError where it is none of this network."""
    check(work, layouts)
    return next((name for name in STRATEGIES if strategy(work, name) == dict(layouts)), UNNAMED)


def divided(layouts: Strategy, partition: Partition | None, devices: int) -> Partition:
    """The partition of the spaces that are ``units`` alone. ValueError where it does not suit."""
    spaces = [space for space, layout in layouts.items() if layout == "units"]
    if not spaces:
        return Partition({}, devices)
    if partition is None:
        raise ValueError("partition is None, but must be given under 'units'; divide the network with one of hardware.partitioners")
    missing = next((space for space in spaces if space not in partition.parts), None)
    if missing is not None:
        raise ValueError(f"partition divides {sorted(partition.parts)}, but must divide {missing!r}, which is 'units'; divide it as well")
    if partition.count != devices:
        raise ValueError(f"partition has {partition.count} parts, but must have {devices}, one a device; divide the network anew")
    return Partition({space: partition.parts[space] for space in spaces}, devices)
